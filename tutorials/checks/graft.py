"""Checks of 07_graft."""

import math

import torch

from . import Mistake, compare, equal, exercise, pair, random

WRONG, RIGHT = {}, {}


@exercise
def check_top_k(fn):
    rewards = random(4, 8, seed=5)
    order = rewards.argsort(-1, descending=True)
    right = torch.zeros(4, 8, dtype=torch.bool).scatter(-1, order[:, :3], True)
    got = fn(rewards, 3)
    if torch.is_tensor(got) and got.shape == (4, 3):
        raise Mistake("these are the best three themselves; return True or False for every sample")
    overall = (rewards >= rewards.flatten().sort(descending=True).values[11]).double()
    compare(
        torch.as_tensor(got).double() if torch.is_tensor(got) else got,
        right.double(),
        {
            "these are the worst of each group": torch.zeros(4, 8).scatter(-1, order[:, -3:], 1.0),
            "the best of all groups together: K of *each* group, or easy prompts crowd out hard ones": overall,
            "True for what is kept, this is the opposite": (~right).double(),
            "one too many: K samples of each group": torch.zeros(4, 8).scatter(-1, order[:, :4], 1.0),
            "a threshold on the reward keeps as many as it likes; rank within the group": (rewards > 0).double(),
            "argsort lists the places, the best first; that is not each sample's rank: mark the first K places":
                (order < 3).double(),
        },
        "the mask",
    )
    if torch.as_tensor(got).dtype != torch.bool:
        raise Mistake("return True and False (dtype bool): with numbers, x[mask] takes the rows 0 and 1")
    other = torch.zeros(4, 8).scatter(-1, order[:, :5], 1.0)
    if not equal(torch.as_tensor(fn(rewards, 5)).double(), other):
        raise Mistake("right for K = 3, wrong for K = 5: use k")
    yes_no = torch.tensor([[1, 0, 1, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1.0]])
    kept = torch.as_tensor(fn(yes_no, 3))
    if kept.shape != yes_no.shape:
        raise Mistake(f"right for 4 groups of 8, for 3 groups of 7 the shape is {tuple(kept.shape)}")
    if bool((kept.sum(1) != 3).any()):
        raise Mistake(
            f"ties: of 7 rewards that are 0 or 1, this keeps {', '.join(map(str, kept.sum(1).tolist()))} in three "
            "groups instead of 3 in each. All that equal the K-th best pass a threshold, or none: choose K *places*"
        )
    if bool((torch.where(kept, yes_no, 1.0).amin(1) < torch.where(kept, 0.0, yes_no).amax(1)).any()):
        raise Mistake("ties: among rewards of which several are equal, a worse one is kept and a better one is not")


def _mask(rewards, indices):
    return torch.zeros(rewards.shape, dtype=torch.bool).scatter(-1, indices, True)


WRONG["top_k"] = [
    (lambda rewards, k: _mask(rewards, rewards.argsort(-1)[:, :k]), "worst"),
    (lambda rewards, k: rewards >= rewards.flatten().sort(descending=True).values[k * len(rewards) - 1],
     "*each* group"),
    (lambda rewards, k: rewards > 0, "rank within the group"),
    (lambda rewards, k: rewards.topk(k).values, "True or False"),
    (lambda rewards, k: rewards.argsort(-1, descending=True) < k, "not each sample's rank"),
    (lambda rewards, k: _mask(rewards, rewards.argsort(-1, descending=True)[:, :3]), "use k"),
    (lambda rewards, k: rewards >= rewards.topk(k).values[:, -1:], "ties"),
    (lambda rewards, k: rewards >= rewards.sort(-1, descending=True).values[:, k - 1, None], "ties"),
    (lambda rewards, k: rewards > rewards.sort(-1).values[:, -k - 1, None], "ties"),
    (lambda rewards, k: (rewards[:, None] > rewards[..., None]).sum(-1) < k, "ties"),
    (lambda rewards, k: torch.isin(rewards, rewards.topk(k).values), "ties"),
    (lambda rewards, k: _mask(rewards, rewards.argsort(-1, descending=True)[:, :k]).long(), "dtype bool"),
    (lambda rewards, k: ~_mask(rewards, rewards.topk(k).indices), "the opposite"),
    (lambda rewards, k: _mask(rewards, rewards.topk(k + 1).indices), "one too many"),
]


def _one_by_one(rewards, k):
    mask = torch.zeros(rewards.shape, dtype=torch.bool)
    for row, own in zip(rewards.tolist(), mask, strict=True):
        own[sorted(range(len(row)), key=row.__getitem__)[-k:]] = True
    return mask


def _by_position(rewards, k):
    mask = torch.zeros_like(rewards, dtype=torch.bool)
    mask[torch.arange(len(rewards))[:, None], rewards.topk(k, dim=1).indices] = True
    return mask


RIGHT["top_k"] = [
    lambda rewards, k: rewards.argsort(-1, descending=True).argsort(-1) < k,
    lambda rewards, k: rewards.argsort(-1).argsort(-1) >= rewards.shape[1] - k,
    lambda rewards, k: _mask(rewards, rewards.topk(k).indices),
    lambda rewards, k: torch.zeros_like(rewards).scatter(1, rewards.sort(1).indices[:, -k:], 1).bool(),
    lambda rewards, k: torch.nn.functional.one_hot(rewards.topk(k).indices, rewards.shape[1]).sum(1) > 0,
    _one_by_one,
    _by_position,
]


def _binomial(q, m, k, others):
    return sum(math.comb(m - others, j) * q**j * (1 - q) ** (m - others - j) for j in range(k))


@exercise
def check_top_k_probability(fn):
    q = torch.tensor([0.05, 0.3, 0.6, 0.9])
    compare(
        fn(q, 8, 3),
        _binomial(q, 8, 3, 1),
        {
            "the *others* are M − 1: the sample does not compete with itself": _binomial(q, 8, 3, 0),
            "fewer than K others may be better: j = 0 … K − 1": _binomial(q, 8, 4, 1),
            "j = 0 counts, too: nobody better": _binomial(q, 8, 3, 1) - (1 - q) ** 7,
            "q is the chance that another one is better, not worse": _binomial(1 - q, 8, 3, 1),
            "the binomial coefficients are missing": sum(q**j * (1 - q) ** (7 - j) for j in range(3)),
            "the coefficients count the ways to choose j of the M − 1 others: C(M−1, j)":
                sum(math.comb(8, j) * q**j * (1 - q) ** (7 - j) for j in range(3)),
            "this is exactly K − 1 better ones; fewer are as good: add up j = 0 … K − 1": 21 * q**2 * (1 - q) ** 5,
        },
        "the probability",
    )
    for m, k in ((8, 5), (6, 3), (5, 1)):
        if not equal(fn(q, m, k), _binomial(q, m, k, 1)):
            raise Mistake(f"right for M = 8 and K = 3, wrong for M = {m} and K = {k}: use m and k")


WRONG["top_k_probability"] = [
    (lambda q, m, k: _binomial(q, m, k, 0), "M − 1"),
    (lambda q, m, k: _binomial(q, m, k + 1, 1), "fewer than K"),
    (lambda q, m, k: _binomial(1 - q, m, k, 1), "not worse"),
    (lambda q, m, k: sum(q**j * (1 - q) ** (m - 1 - j) for j in range(k)), "coefficients"),
    (lambda q, m, k: sum(math.comb(m, j) * q**j * (1 - q) ** (m - 1 - j) for j in range(k)), "C(M−1, j)"),
    (lambda q, m, k: math.comb(m - 1, k - 1) * q ** (k - 1) * (1 - q) ** (m - k), "add up"),
    (lambda q, m, k: _binomial(q, m, 3, 1), "use m and k"),
    (lambda q, m, k: _binomial(q, 8, k, 1), "use m and k"),
    (lambda q, m, k: _binomial(q, m, k, 1) - (1 - q) ** (m - 1), "nobody better"),
]


@exercise
def check_ceiling(fn):
    a = torch.rand(50, generator=torch.Generator().manual_seed(0))
    compare(
        fn(a),
        (a**2).mean() / a.mean(),
        {
            "this is the success without any training; accepted states have the weight a": a.mean(),
            "this is the second moment; divide by the acceptance rate": (a**2).mean(),
            "divide by the acceptance rate, the mean of a, once": (a**2).mean() / a.mean() ** 2,
            "one state's success is a, not always 1": torch.tensor(1.0),
            "the mean of the squares, not the square of the mean, and divided by the mean of a": [
                a.mean() ** 2 / (a**2).mean(), a.mean() ** 2,
            ],
            "upside down: E[a²] is above, E[a] below": a.mean() / (a**2).mean(),
            "the root of E[a²] is no success: E[a²]/E[a]": (a**2).mean().sqrt(),
        },
        "the ceiling",
    )


WRONG["ceiling"] = [
    (lambda a: a.mean(), "without any training"),
    (lambda a: (a**2).mean(), "acceptance rate"),
    (lambda a: torch.tensor(1.0), "not always 1"),
    (lambda a: (a * a / a.sum() * len(a)).mean() / a.mean(), "once"),
    (lambda a: a.mean() ** 2, "square of the mean"),
    (lambda a: a.mean() / (a * a).mean(), "upside down"),
]
RIGHT["ceiling"] = [lambda a: (a / a.sum() * a).sum()]


def _renoise(x_t, abar_t, abar_s, eps):
    rho = (abar_s / abar_t).sqrt()
    variance = (1 - abar_s) - rho**2 * (1 - abar_t)
    return rho, variance, rho * x_t + variance.sqrt() * eps


def _with_target(x_t, abar_t, abar_s, eps, factor):
    """The right x_s, and the target factor(σ²)·ε."""
    _, variance, x_s = _renoise(x_t, abar_t, abar_s, eps)
    return x_s, factor(variance) * eps


@exercise
def check_renoise(fn):
    x_t, eps = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1)
    abar_t, abar_s = torch.tensor(0.6), torch.tensor(0.2)
    x_s, target = pair(fn(x_t, abar_t, abar_s, eps), "x_s and the target")
    rho, variance, right = _renoise(x_t, abar_t, abar_s, eps)
    compare(
        x_s,
        right,
        {
            "this is the noising of a clean picture; x_t has noise already":
                abar_s.sqrt() * x_t + (1 - abar_s).sqrt() * eps,
            "x_t keeps √(ᾱ_s/ᾱ_t) of itself, not √ᾱ_s": abar_s.sqrt() * x_t + variance.sqrt() * eps,
            "too much noise: the noise that x_t has, shrunk by ρ, counts": rho * x_t + (1 - abar_s).sqrt() * eps,
            "σ² is a variance: take its root": rho * x_t + variance * eps,
            "ρ is √(ᾱ_s/ᾱ_t), not its square": abar_s / abar_t * x_t + variance.sqrt() * eps,
            "ρ is √(ᾱ_s/ᾱ_t): upside down": x_t / rho + variance.sqrt() * eps,
        },
        "x_s",
    )
    compare(
        target,
        ((1 - abar_s) / variance).sqrt() * eps,
        {
            "ε is only the noise added last; scale it so that its mean is −√(1−ᾱ_s) times the score": eps,
            "upside down: the target is larger than ε": (variance / (1 - abar_s)).sqrt() * eps,
            "the root is missing": (1 - abar_s) / variance * eps,
            "this is the score −ε/σ itself; ε̂ is −√(1−ᾱ_s) times the score": -eps / variance.sqrt(),
            "the factor √(1−ᾱ_s) is missing: ε̂ is −√(1−ᾱ_s) times the score −ε/σ": eps / variance.sqrt(),
            "the sign: ε̂ is *minus* √(1−ᾱ_s) times the score −ε/σ": -((1 - abar_s) / variance).sqrt() * eps,
        },
        "the target",
    )


WRONG["renoise"] = [
    (lambda x_t, abar_t, abar_s, eps: (abar_s.sqrt() * x_t + (1 - abar_s).sqrt() * eps, eps), "noise already"),
    (lambda x_t, abar_t, abar_s, eps: (_renoise(x_t, abar_t, abar_s, eps)[2], eps), "added last"),
    (lambda x_t, abar_t, abar_s, eps: _renoise(x_t, abar_t, abar_s, eps)[2], "two values"),
    (lambda x_t, abar_t, abar_s, eps: ((abar_s / abar_t).sqrt() * x_t + (1 - abar_s).sqrt() * eps, eps),
     "too much noise"),
    (lambda x_t, abar_t, abar_s, eps: _with_target(x_t, abar_t, abar_s, eps, lambda v: -1 / v.sqrt()), "score −ε/σ"),
    (lambda x_t, abar_t, abar_s, eps: _with_target(x_t, abar_t, abar_s, eps, lambda v: 1 / v.sqrt()), "factor √(1−ᾱ_s"),
    (lambda x_t, abar_t, abar_s, eps: _with_target(x_t, abar_t, abar_s, eps, lambda v: -((1 - abar_s) / v).sqrt()),
     "the sign"),
    (lambda x_t, abar_t, abar_s, eps: (_renoise(x_t, abar_t, abar_s, eps)[0] * x_t
                                       + _renoise(x_t, abar_t, abar_s, eps)[1] * eps, eps), "take its root"),
    (lambda x_t, abar_t, abar_s, eps: (abar_s / abar_t * x_t + _renoise(x_t, abar_t, abar_s, eps)[1].sqrt() * eps, eps),
     "not its square"),
    (lambda x_t, abar_t, abar_s, eps: (_renoise(x_t, abar_t, abar_s, torch.randn_like(eps))[2], eps),
     "drew random numbers"),
]
RIGHT["renoise"] = [
    lambda x_t, abar_t, abar_s, eps: _with_target(
        x_t, abar_t, abar_s, eps, lambda _: ((1 - abar_s) / (1 - abar_s / abar_t)).sqrt()  # σ² = 1 − ᾱ_s/ᾱ_t
    ),
]


@exercise
def check_switched(fn):
    for t, switch, name in ((700, 500, "fine-tuned"), (300, 500, "base"), (500, 500, "base"), (1, 0, "fine-tuned")):
        asked = []
        predict = fn(
            lambda x, t, asked=asked: asked.append("fine-tuned") or 2 * x + t,
            lambda x, t, asked=asked: asked.append("base") or 3 * x + t,
            switch,
        )
        if not callable(predict):
            raise Mistake("return a function of x and t")
        got = predict(torch.ones(3), t)
        if len(asked) > 1:
            raise Mistake("one network for each time: both were asked, at twice the price")
        if asked != [name] and t == switch:
            raise Mistake("at the switch itself the base works: the state x_t *there* is what was learned")
        if asked != [name]:
            raise Mistake(f"at t = {t} with the switch at {switch} the {name} network works: drawing begins at large t")
        factor = 2.0 if name == "fine-tuned" else 3.0
        other = {"ask the network at t, not at the switch": torch.full((3,), factor + switch)} if switch != t else {}
        compare(got, torch.full((3,), factor + t), other, "ε̂")


WRONG["switched"] = [
    (lambda ours, base, switch: lambda x, t: ours(x, t) if t < switch else base(x, t), "drawing begins at large t"),
    (lambda ours, base, switch: lambda x, t: ours(x, t) if t >= switch else base(x, t), "at the switch itself"),
    (lambda ours, base, switch: lambda x, t: (ours(x, t), base(x, t))[0], "at twice the price"),
    (lambda ours, base, switch: None, "return a function"),
    (lambda ours, base, switch: lambda x, t: ours(x, switch) if t > switch else base(x, switch), "not at the switch"),
]
