"""The law that a sweep predicts by: Hoffmann et al.'s (law.py) with two more numbers, where the runs ask for them.

  L(N, D) = (E + ((A / N^alpha)^kappa + (B / D^beta)^kappa)^(1 / kappa)) r^gamma

kappa = 1 is Hoffmann et al. 2022, eq. 2: the losses from too small a model and from too little data add up. kappa = 1 / beta is
Kaplan et al. 2020, eq. 1.5 (with E = 0), ((N_c / N)^(alpha / beta) + D_c / D)^beta: the larger of the two losses nearly hides the
smaller. Small models lie between the two: the residuals of their grid from the sum are smooth, and the sum's E is too high. r is
the shape's channels per layer over the usual number (shapes.py), since a whole number of layers does not always give that number;
gamma is 0.02 or 0.03.

At equal compute the best N has alpha (A / N^alpha)^kappa = beta (B / D^beta)^kappa, so again N_opt ~ C^a with
a = beta / (alpha + beta).
"""
import numpy as np

from .law import NAMES, Law, Problem, huber, resampled

MORE = ("kappa", "gamma")
KAPPA = (0.5, 4)  # the range in which it is sought
STARTS = [(scale, kappa) for scale in (1.0, 0.9, 0.75) for kappa in (1.0, 1.4, 2.0)]


class RefinedLaw(Law):
    """One law or a batch, as Law is."""

    def __init__(self, E, A, B, alpha, beta, kappa=1.0, gamma=0.0):
        super().__init__(E, A, B, alpha, beta)
        self.kappa, self.gamma = kappa, gamma

    @classmethod
    def of(cls, law):
        """The same law, with a kappa and gamma that have no effect."""
        one = np.ones_like(np.asarray(law.E, dtype=float))
        return cls(law.E, law.A, law.B, law.alpha, law.beta, one, 0 * one)

    def loss(self, N, D, aspect=1.0):
        lack = (self.A / N**self.alpha) ** self.kappa + (self.B / D**self.beta) ** self.kappa
        return (self.E + lack ** (1 / self.kappa)) * aspect**self.gamma

    def optimum(self, C, flops_per=6.0):
        ratio = (self.alpha / self.beta) ** (1 / self.kappa) * self.A / self.B
        N = ratio ** (1 / (self.alpha + self.beta)) * (C / flops_per) ** self.a
        return N, C / flops_per / N

    def __getitem__(self, i):
        return RefinedLaw(*(getattr(self, name)[i] for name in (*NAMES, *MORE)))

    def as_dict(self):
        return {name: float(getattr(self, name)) for name in (*NAMES, *MORE)}


class RefinedProblem(Problem):
    """theta (..., 7): that of Problem, log kappa, gamma."""

    def __init__(self, N, D, L, aspect, delta):
        super().__init__(N, D, L, delta)
        self.r = np.log(aspect)

    def law(self, theta):
        first = super().law(theta[..., :5])
        return RefinedLaw(first.E, first.A, first.B, first.alpha, first.beta, np.exp(theta[..., 5]), theta[..., 6])

    def theta(self, law):
        return np.append(super().theta(law), [np.log(law.kappa), law.gamma])

    def residuals(self, theta):
        """Of log L (batch, points), and the predicted log loss's derivatives (batch, points, 7)."""
        a, b, e, alpha, beta, k, gamma = (theta[:, i, None] for i in range(7))
        kappa = np.exp(k)
        u, v = a - alpha * self.n, b - beta * self.d
        lack = np.logaddexp(kappa * u, kappa * v) / kappa
        total = np.logaddexp(e, lack)
        share, of_n = np.exp(lack - total), np.exp(kappa * (u - lack))
        of_d = 1 - of_n
        J = np.stack([share * of_n, share * of_d, 1 - share, -self.n * share * of_n, -self.d * share * of_d,
                      share * (of_n * u + of_d * v - lack), np.broadcast_to(self.r, share.shape)], axis=-1)
        return self.l - total - gamma * self.r, J

    def solve(self, theta, weights, free, iterations=80):
        """Levenberg and Marquardt on Huber's loss, by IRLS, from each theta (batch, 7): the best theta and objectives. Only the
        `free` of the seven numbers move."""
        theta = np.array(theta, dtype=float)
        weights = np.broadcast_to(weights, (len(theta), len(self.n)))
        damping, quiet = np.full(len(theta), 1e-3), np.zeros(len(theta), dtype=int)
        r, J = self.residuals(theta)
        value = np.sum(weights * huber(r, self.delta), axis=1)
        for _ in range(iterations):
            w = weights * self.delta / np.maximum(np.abs(r), self.delta)
            Jf = J[..., free]
            normal = np.matmul((w[..., None] * Jf).transpose(0, 2, 1), Jf)
            diagonal = np.einsum("sii->si", normal)
            normal = normal + (damping[:, None] * diagonal + 1e-12 * diagonal.max())[:, None] * np.eye(len(free))
            gradient = np.einsum("sp,spi->si", w * r, Jf)
            trial = theta.copy()
            trial[:, free] += np.clip(np.linalg.solve(normal, gradient[..., None])[..., 0], -1, 1)
            trial[:, 5] = np.clip(trial[:, 5], *np.log(KAPPA))
            r_trial, J_trial = self.residuals(trial)
            value_trial = np.sum(weights * huber(r_trial, self.delta), axis=1)
            better = value_trial < value
            gain = np.where(better, value - value_trial, 0)
            theta[better], value[better] = trial[better], value_trial[better]
            r[better], J[better] = r_trial[better], J_trial[better]
            damping = np.where(better, damping * 0.3, damping * 5)
            quiet = np.where(gain > 1e-9 * value, 0, quiet + 1)
            if quiet.min() >= 8:
                break
        return theta, value


def information(value, points, numbers):
    """Schwarz 1978, of the residuals' spread as the Huber loss sees it: smaller is better."""
    return points * np.log(2 * value / points) + numbers * np.log(points)


def refine(table, law, delta, samples, seed=1):
    """(RefinedLaw, its bootstrap, gain): the five-number law's refinement where its Bayesian information criterion is lower, by
    `gain`; else (None, None, gain)."""
    problem = RefinedProblem(table.N, table.D, table.loss, np.array(table.extra["aspect"], dtype=float), delta)
    points, all_of_them = len(table), list(range(7))
    plain = problem.theta(RefinedLaw.of(law))
    starts = np.repeat(plain[None], len(STARTS), axis=0)
    starts[:, 2] += np.log([scale for scale, _ in STARTS])
    starts[:, 5] = np.log([kappa for _, kappa in STARTS])
    ones = np.ones(points)
    theta, value = problem.solve(starts, ones, all_of_them, 300)
    best = int(np.argmin(value))
    _, plain_value = problem.solve(plain[None], ones, all_of_them[:5], 300)
    gain = float(information(plain_value[0], points, 5) - information(value[best], points, 7))
    if gain <= 0:
        return None, None, gain
    weights = resampled(points, samples, seed)
    batch, _ = problem.solve(np.repeat(theta[best][None], samples, axis=0), weights, all_of_them)
    return problem.law(theta[best]), problem.law(batch), gain
