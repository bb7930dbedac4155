"""What a model of a given size looks like, what it costs, and the binary's own rules for batch, rate, decay, beta2."""
import math
from dataclasses import dataclass

WIDEST = 16384
OPTIMIZER = "muon"  # the binary's default; between seeds its losses of small models scatter a third of AdamW's


def round_up(value, multiple):
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Shape:
    """A modern GPT (RMSNorm, RoPE, SwiGLU, QK-norm, a head of its own) as `train_gpt train` builds it from three dimensions."""

    layers: int
    channels: int

    @property
    def heads(self):
        return self.channels // self.head_size

    @property
    def head_size(self):
        """As in the presets; narrower models have heads of 16, so that there are several. (Sizes alternating between 16 and 32
        would show in the losses.)"""
        if self.channels < 384:
            return 16 if self.channels < 128 else 32
        return 64 if self.channels < 2048 else 128

    @property
    def aspect(self):
        """Channels per layer, in units of the usual number."""
        return self.channels / self.layers / usual_aspect(self.channels)

    @property
    def matrices(self):
        """Weights of the blocks' matrices: attention 4 C^2, SwiGLU 3 C F with F = 8/3 C rounded up to 32."""
        C = self.channels
        return self.layers * (4 * C * C + 3 * C * round_up(-(-8 * C // 3), 32))

    @property
    def body(self):
        """N without embedding and head: matrices, norms, QK-norms."""
        return self.matrices + self.layers * (2 * self.channels + 2 * self.head_size) + self.channels

    def parameters(self, vocabulary):
        return self.body + 2 * vocabulary * self.channels

    def flops_per_token(self, vocabulary, context):
        """FLOPs that training needs: 6 for each weight of a matrix, 12 L C (T + 1) / 2 for causal attention (Kaplan et al. 2020,
        table 1; llm/model/gpt.cpp training_flops_per_token)."""
        attention = self.layers * self.channels * (context + 1) / 2
        return 6 * (self.matrices + vocabulary * self.channels) + 12 * attention

    def flags(self):
        return flags(layers=self.layers, channels=self.channels, heads=self.heads)


def usual_aspect(channels):
    """The usual channels per layer: 32 at 128 channels (the preset tiny), 65 at 768 (GPT-2), 128 at 4096 (Llama 3.1 8B). Between
    them the loss hardly depends on it (Kaplan et al. 2020, fig. 5)."""
    return 32 * (channels / 128) ** 0.4


def shape_for(parameters, vocabulary):
    """A shape near a size, with an aspect as close to the usual one as possible: a law over sizes is a law of one family of
    shapes, and two layers where three are usual cost a percent of the loss. Sizes need not be evenly spaced. One layer is not in
    the family: it cannot look up what followed an earlier token (Olsson et al. 2022)."""
    best = None
    for channels in range(16, WIDEST + 1, 16):
        multiple = 16 if channels < 128 else 32 if channels < 384 else 64 if channels < 2048 else 128
        if channels % multiple:
            continue
        one = Shape(1, channels)
        guess = (parameters - 2 * vocabulary * channels) / one.body
        for layers in {max(2, math.floor(guess)), max(2, math.ceil(guess))}:
            shape = Shape(layers, channels)
            miss = abs(math.log(shape.parameters(vocabulary) / parameters))
            odd = abs(math.log(shape.aspect))
            score = miss + 2 * odd
            if best is None or score < best[0]:
                best = (score, shape)
        if one.parameters(vocabulary) > 4 * parameters:
            break
    return best[1]


def usual_batch(context):
    """Sequences of about 1024 tokens, the binary's micro-step (llm/train/rules.cpp)."""
    return min(64, max(1, 1024 // context))


def step_tokens(tokens, context):
    """Tokens a step in a run over `tokens`: 1024 for 16 million, growing with the root (Zhang et al. 2025), as in rules.cpp. There a
    short run stays at 1024, which saves time. But a law of N and D needs the best loss for each D, and at 1024 a run of a
    million tokens has too few steps: its loss is a percent higher, which would bend the law too soon."""
    sequences, usual = max(1, round(1024 * math.sqrt(tokens / 16e6) / context)), usual_batch(context)
    return context * (sequences if sequences < 2 * usual else usual * round(sequences / usual))


def micro_batch(step, context):
    """Sequences in each micro-step of a step of `step` tokens."""
    sequences, usual = step // context, usual_batch(context)
    return sequences if sequences < 2 * usual else usual


def shared_batch(ranks, sequences, context):
    """(ranks, batch of each) for a step of `sequences`, whose micro-steps are shared: as many ranks as divide it, at most `ranks`."""
    shares = max(n for n in range(1, min(ranks, sequences) + 1) if sequences % n == 0)
    return shares, micro_batch(sequences // shares * context, context)


def warmup_steps(steps):
    """5 % of the steps, at least 20 where there are 40, at most 2000, as in rules.cpp."""
    return min(max(steps // 20, min(20, steps // 2)), 2000)


def rates(steps, step, longest=None):
    """Learning rate, weight decay and beta2 of a WSD run of `steps` steps of `step` tokens, as in rules.cpp (the sources are in
    llm/train/README.md). The rate is the base model's at every size: the binary multiplies it for each parameter.
    `longest`: the steps of the longest run that shares these values."""
    lr = min(0.015, 0.26 * min(1, step / 1024) ** 0.25 / math.sqrt(steps))
    window = min(max(min(steps / 20, 1e7 / step), 20), 1000)
    return {"lr": lr, "weight_decay": 1 / (lr * max(2 * (longest or steps), 200)), "beta2": 1 - 1 / window}


def flags(**values):
    """flags(save_every=5) -> ["--save-every", "5"]; values of None are left out."""
    return [word for name, value in values.items() if value is not None
            for word in ("--" + name.replace("_", "-"), str(value))]


def short(value):
    """1234567 -> 1.23M, for names and tables."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale * 0.9995:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds):
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.{1 if seconds < 600 else 0}f} min"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
