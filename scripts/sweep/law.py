"""L(N, D) = E + A / N^alpha + B / D^beta and its fit (Hoffmann et al. 2022, eq. 2, 3; Besiroglu et al. 2024, sec. 2).

The fit minimises  sum_i w_i Huber_delta(log L_i - LSE(a - alpha log N_i, b - beta log D_i, e)),  A = exp a, B = exp b,
E = exp e. The law is linear in (E, A, B), so a grid over (alpha, beta) with a small linear problem at each node
(variable projection, Golub and Pereyra 1973) finds the valley; Newton's method on all five then goes to its floor.
Everything is batched over the first axis, so that a thousand bootstrap samples take a second or two.
"""
import numpy as np

DELTA = 1e-3  # of the Huber loss, as in both papers
NAMES = ("E", "A", "B", "alpha", "beta")


class Law:
    """One fitted law, or a batch of them: E, A, B, alpha, beta are numbers or arrays of one shape."""

    def __init__(self, E, A, B, alpha, beta):
        self.E, self.A, self.B, self.alpha, self.beta = E, A, B, alpha, beta

    def loss(self, N, D):
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    @property
    def a(self):
        """Exponent of N_opt ~ C^a (Hoffmann et al. 2022, eq. 4)."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, C, flops_per=6.0):
        """N and D with the lowest loss at C = flops_per N D (Hoffmann et al. 2022, eq. 4)."""
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        N = G * (C / flops_per) ** self.a
        return N, C / flops_per / N

    def __getitem__(self, i):
        return Law(*(getattr(self, name)[i] for name in NAMES))

    def as_dict(self):
        return {name: float(getattr(self, name)) for name in NAMES}


def huber(residual, delta):
    """Huber 1964: quadratic up to delta, linear beyond."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


class Problem:
    """The points of a table, with log N and log D centred: (a, alpha) and (b, beta) are then nearly independent."""

    def __init__(self, N, D, L, delta=DELTA):
        self.n, self.d, self.l = np.log(N), np.log(D), np.log(L)  # (points,)
        self.n_mean, self.d_mean = self.n.mean(), self.d.mean()
        self.n, self.d = self.n - self.n_mean, self.d - self.d_mean
        self.delta = delta

    def law(self, theta):  # (..., 5): a, b, e, alpha, beta of the centred points
        a, b, e, alpha, beta = np.moveaxis(theta, -1, 0)
        # Noise can drive a term out of the range of doubles; such a fit is refused, but it must have numbers for that.
        E, A, B = (np.exp(np.clip(x, -700, 700)) for x in (e, a + alpha * self.n_mean, b + beta * self.d_mean))
        return Law(E, A, B, alpha, beta)

    def theta(self, law):
        return np.array([np.log(law.A) - law.alpha * self.n_mean, np.log(law.B) - law.beta * self.d_mean,
                         np.log(law.E), law.alpha, law.beta])

    def shares(self, theta):
        """The three terms' shares of the predicted loss (batch, points) each, and the residuals of log L."""
        a, b, e, alpha, beta = (theta[:, i, None] for i in range(5))
        terms = np.exp(a - alpha * self.n), np.exp(b - beta * self.d), np.exp(e)
        total = terms[0] + terms[1] + terms[2]
        return [term / total for term in terms], self.l - np.log(total)

    def objective(self, theta, weights):
        with np.errstate(over="ignore", invalid="ignore"):
            value = np.sum(weights * huber(self.shares(theta)[1], self.delta), axis=1)
        return np.where(np.isfinite(value), value, np.inf)

    def derivatives(self, theta, weights):
        """Gradient (batch, 5), Hessian and its majorant with Huber's IRLS weights (batch, 5, 5)."""
        (pa, pb, pe), r = self.shares(theta)
        J = np.stack([pa, pb, pe, -self.n * pa, -self.d * pb], axis=-1)  # of the predicted log loss
        slope = weights * np.clip(r, -self.delta, self.delta)
        gradient = -np.einsum("si,sij->sj", slope, J)
        size = np.abs(r)

        def outer(w):
            return np.matmul((w[..., None] * J).transpose(0, 2, 1), J)

        # d2 LSE = sum_k p_k z_k z_k^T - J J^T, where z_k is the k-th term's exponent's gradient.
        hessian = outer(weights * (size <= self.delta) + slope)
        for rows, p, x in (((0, 3), pa, self.n), ((1, 4), pb, self.d)):
            i, j = rows
            c = slope * p
            hessian[:, i, i] -= c.sum(1)
            cross = (c * x).sum(1)
            hessian[:, i, j] += cross
            hessian[:, j, i] += cross
            hessian[:, j, j] -= (c * x * x).sum(1)
        hessian[:, 2, 2] -= (slope * pe).sum(1)
        majorant = outer(weights * self.delta / np.maximum(size, self.delta))
        return gradient, hessian, majorant


def polish(problem, theta, weights, iterations=300, tolerance=1e-13, patience=12):
    """Damped Newton from theta (batch, 5): the damping matrix is the IRLS majorant, so that much damping means a safe
    IRLS step and none means Newton's. Returns the best theta and objectives (batch,)."""
    theta = np.array(theta, dtype=float)
    weights = np.broadcast_to(weights, (len(theta), len(problem.n)))
    value = problem.objective(theta, weights)
    damping = np.full(len(theta), 1.0)
    quiet = np.zeros(len(theta), dtype=int)
    active = np.flatnonzero(np.isfinite(value))
    for _ in range(iterations):
        if not len(active):
            break
        gradient, hessian, majorant = problem.derivatives(theta[active], weights[active])
        ridge = 1e-14 * np.trace(majorant, axis1=1, axis2=2)[:, None, None] * np.eye(5) + 1e-300 * np.eye(5)
        matrix = hessian + damping[active, None, None] * majorant + ridge
        curvature, axes = np.linalg.eigh(matrix)  # (active, 5), (active, 5, 5): unlike elimination it takes any matrix
        good = curvature[:, 0] > 0
        along = np.einsum("bij,bi->bj", axes, gradient) / np.where(good[:, None], curvature, np.inf)
        step = np.clip(-np.einsum("bij,bj->bi", axes, along), -2, 2)
        trial = theta[active] + step
        trial_value = problem.objective(trial, weights[active])
        better = good & (trial_value < value[active])
        gain = np.where(better, value[active] - trial_value, 0)
        small = np.where(good, gain <= tolerance * value[active], False)
        theta[active[better]] = trial[better]
        value[active[better]] = trial_value[better]
        damping[active] = np.where(better, damping[active] * 0.2, np.maximum(damping[active], 1e-9) * 6)
        quiet[active] = np.where(small, quiet[active] + 1, 0)
        # A rejected step may mean too little damping: only several in a row mean the floor.
        active = active[(quiet[active] < patience) & (damping[active] < 1e12) & (value[active] > 1e-28)]
    return theta, value


def projected_starts(problem, exponents=np.arange(0.05, 1.55, 0.1), rounds=4):
    """For each (alpha, beta) of a grid the best (E, A, B), by IRLS on (L - prediction) / L, the first order of log L's
    residual; nonnegative as far as a few rounds of clipping go. Returns theta (grid, 5)."""
    grid = np.array([(alpha, beta) for alpha in exponents for beta in exponents])
    L = np.exp(problem.l)
    X = np.stack([np.exp(-grid[:, :1] * problem.n), np.exp(-grid[:, 1:] * problem.d),
                  np.ones((len(grid), len(L)))], axis=-1) / L[:, None]  # (grid, points, 3)
    weights = np.ones((len(grid), len(L)))
    floor = 1e-4 * L.min()
    for _ in range(rounds):
        XtW = (weights[..., None] * X).transpose(0, 2, 1)
        normal = XtW @ X
        normal += 1e-10 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(3)
        c = np.linalg.solve(normal, XtW.sum(-1)[..., None])[..., 0]
        r = np.abs(1 - np.einsum("gpi,gi->gp", X, c))
        weights = problem.delta / np.maximum(r, problem.delta)
    c = np.maximum(c, floor)
    return np.concatenate([np.log(c), grid], axis=1)


def fit(N, D, L, delta=DELTA, keep=24):
    """The global optimum: (Law, objective, Problem). Points are arrays of one length."""
    problem = Problem(N, D, L, delta)
    # The valley is found under a wider Huber loss first, where it has fewer side pockets.
    starts = projected_starts(problem)
    ones = np.ones(len(problem.n))
    wide = Problem(N, D, L, max(delta, 1e-2))
    order = np.argsort(wide.objective(starts, ones))[:keep]
    theta, _ = polish(wide, starts[order], ones)
    theta, value = polish(problem, np.concatenate([theta, starts[order][:8]]), ones)
    best = int(np.argmin(value))
    return problem.law(theta[best]), float(value[best]), problem


def refit(problem, law, weights):
    """Fits under other weights (batch, points), each from the given optimum; for bootstrap and jackknife."""
    start = np.repeat(problem.theta(law)[None], len(weights), axis=0)
    theta, value = polish(problem, start, weights, iterations=200, tolerance=1e-8, patience=5)
    return problem.law(theta), value


def resampled(points, samples, seed):
    """How often each run counts in resamples with replacement (Efron 1979): (samples, points)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(points, np.full(points, 1 / points), size=samples).astype(float)


def bootstrap(problem, law, samples=1000, seed=1, batch=100):
    """Laws fitted to `samples` resamples of the runs: a Law of arrays."""
    weights = resampled(len(problem.n), samples, seed)
    laws = [refit(problem, law, weights[i:i + batch])[0] for i in range(0, samples, batch)]
    return Law(*(np.concatenate([getattr(part, name) for part in laws]) for name in NAMES))


def interval(values, level=0.95):
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]
