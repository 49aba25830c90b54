"""
Muon: a matrix is moved by the orthogonal matrix nearest to its momentum, everything else by AdamW.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
kellerjordan.github.io/posts/muon.

    M <- mu M + (1 - mu) G                  momentum of the gradient G of a weight W (n_out, n_in)
    U = orthogonal((1 - mu) G + mu M)       Nesterov: one step ahead; U = P Q^T if P S Q^T is its SVD
    W <- W - lr sqrt(max(1, n_out / n_in)) U

Why: the gradient of a weight is often nearly of low rank. Adam follows its few large directions; U gives all
directions the same length, so what is rare in the data is learned about as soon as what is common.
torch.optim.Muon does the same in bfloat16, one matrix at a time: fast on a GPU, slow on most CPUs. Ours is
float32, all matrices of one shape at once, and a single optimizer with AdamW, so that one state is saved.
"""
import torch

QUINTIC = 3.4445, -4.7750, 2.0315    # published: steepest at 0; leaves singular values between 0.7 and 1.2


def orthogonal(G, steps=5):
    """
    (..., m, n) -> the same with singular values of about 1. Newton-Schulz: X <- a X + (b A + c A^2) X with
    A = X X^T does to each singular value s what s <- a s + b s^3 + c s^5 does. Those below a thousandth of
    the norm stay small.
    """
    tall = G.shape[-2] > G.shape[-1]
    X = G.mT if tall else G                                          # A is cheapest from the short side
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)       # none above 1, or it would diverge
    a, b, c = QUINTIC
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.mT if tall else X


class Muon(torch.optim.AdamW):
    """
    Parameter groups with `parts`, a list with a number for each parameter, go by Muon, all others by AdamW.
    parts: how many matrices are stacked in that parameter, because q, k and v in one Linear are three maps.
    Such a group may have its own `momentum` (0.95, published). lr and weight_decay as in AdamW.
    """

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            if 'parts' in group:
                self.move(group)
        return super().step()

    def move(self, group):
        mu, decay = group.get('momentum', 0.95), 1 - group['lr'] * group['weight_decay']
        by_shape = {}                                                # {shape: [(what to follow, weight)]}
        for p, parts in zip(group['params'], group['parts']):
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state['momentum'] = torch.zeros_like(p)
                state['step'] = torch.zeros(())                      # AdamW looks for it in what it loads
            momentum = state['momentum'].lerp_(p.grad, 1 - mu)
            for ahead, W in zip(p.grad.lerp(momentum, mu).chunk(parts), p.chunk(parts)):
                by_shape.setdefault(W.shape, []).append((ahead, W))
            p.grad = None                                            # AdamW passes over what has no gradient
        for (n_out, n_in), pairs in by_shape.items():
            rate = group['lr'] * max(1, n_out / n_in) ** 0.5
            U = orthogonal(torch.stack([ahead for ahead, _ in pairs]))
            for u, (_, W) in zip(U, pairs):
                W.mul_(decay).sub_(u, alpha=rate)
