"""muon.py: orthogonal directions, torch.optim.Muon as reference, AdamW untouched, a state that comes back."""
import copy

import pytest
import torch

import checkpoint
import nanowm
from muon import Muon, orthogonal


@pytest.mark.parametrize('shape', [(8, 8), (8, 24), (24, 8), (3, 8, 12)])
def test_orthogonal(shape):
    """Singular values near 1 whatever they were, singular vectors kept; a zero gradient stays zero."""
    torch.manual_seed(0)
    G = torch.randn(shape)
    U = orthogonal(G)
    values = torch.linalg.svdvals(U)
    assert U.shape == G.shape and 0.6 < values.min() and values.max() < 1.3
    A, _, B = torch.linalg.svd(G, full_matrices=False)
    inside = A.mT @ U @ B.mT                                         # diagonal, if the vectors are those of G
    assert (inside - torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-4
    assert not orthogonal(torch.zeros(shape)).any()


def test_a_rare_direction_counts_as_much():
    """A gradient that is 100 times as long in one direction as in another moves both alike."""
    A, B = torch.linalg.qr(torch.randn(8, 8))[0], torch.linalg.qr(torch.randn(8, 8))[0]
    U = orthogonal(A @ torch.diag(torch.tensor([1.0] + 7 * [0.01])) @ B)
    lengths = (A.T @ U @ B.T).diagonal()
    assert lengths.min() > 0.5 and lengths.max() < 1.3


def gradients(params, seed):
    torch.manual_seed(seed)
    for p in params:
        p.grad = torch.randn_like(p)


def test_like_torch():
    """Four steps with decay and another momentum; torch rounds to bfloat16, so the way differs by 2 %."""
    torch.manual_seed(0)
    start = [torch.randn(16, 16), torch.randn(48, 16), torch.randn(16, 32), torch.randn(16, 16)]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    mine = Muon([{'params': ours, 'parts': [1] * 4, 'momentum': 0.9}], lr=0.05, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1, momentum=0.9)
    for seed in range(4):
        gradients(ours, seed)
        gradients(theirs, seed)
        mine.step()
        other.step()
    for x, p, q in zip(start, ours, theirs):
        assert (p - q).norm() < 0.02 * (q - x).norm()


def test_stacked_maps_move_apart():
    torch.manual_seed(0)
    start = torch.randn(24, 8)
    whole = torch.nn.Parameter(start.clone())
    three = [torch.nn.Parameter(x.clone()) for x in start.chunk(3)]
    together = Muon([{'params': [whole], 'parts': [3]}], lr=0.1)
    apart = Muon([{'params': three, 'parts': [1, 1, 1]}], lr=0.1)
    for seed in range(2):
        gradients([whole], seed)
        for p, g in zip(three, whole.grad.clone().chunk(3)):
            p.grad = g
        together.step()
        apart.step()
    assert torch.equal(whole, torch.cat(three)) and not torch.equal(whole, start)


def test_the_rest_is_adamw():
    """Bit for bit, beside a group that goes by Muon; what has no gradient stays."""
    torch.manual_seed(0)
    start = torch.randn(5, 7)
    ours, theirs, matrix, idle = (torch.nn.Parameter(start.clone()) for _ in range(4))
    mine = Muon([{'params': [ours]}, {'params': [matrix, idle], 'parts': [1, 1]}], lr=0.01, fused=True)
    other = torch.optim.AdamW([theirs], lr=0.01, fused=True)
    for seed in range(3):
        for p in (ours, theirs, matrix):
            gradients([p], seed)
        mine.step()
        other.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(matrix, ours) and not torch.equal(matrix, start) and torch.equal(idle, start)


@pytest.mark.parametrize('injection', nanowm.INJECTIONS)
def test_what_nanowm_gives_it(injection):
    """Each parameter once; the matrices of attention and MLP by Muon, stacked ones as three and as two."""
    cfg = nanowm.Config(hidden=16, heads=2, depth=2, height=4, width=4, injection=injection, muon=10.0)
    model = nanowm.Model(cfg)
    rest, moved = model.configure_optimizers(1e-3, 0.01, (0.9, 0.99)).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(rest['params']) + len(moved['params']) == len(names)
    assert {id(p) for p in rest['params'] + moved['params']} == names.keys()
    ends = {'attn.qkv': 3, 'attn.proj': 1, 'mlp.w1': 1, 'mlp.w2': 1, 'mlp.w3': 1}
    if injection == 'cross_attention':
        ends |= {'cross_attn.q': 1, 'cross_attn.kv': 2, 'cross_attn.proj': 1}
    wanted = {f'blocks.{i}.{end}.weight': parts for i in (0, 1) for end, parts in ends.items()}
    assert {names[id(p)]: parts for p, parts in zip(moved['params'], moved['parts'])} == wanted
    assert moved['lr_scale'] == 10 and 'parts' not in rest


def test_state_comes_back():
    """Saved after two steps and loaded by name as train.py does: the third step is the same, bit for bit."""
    torch.manual_seed(0)
    cfg = nanowm.Config(hidden=16, heads=2, depth=2, height=4, width=4, action_dim=3, muon=10.0)
    model = nanowm.Model(cfg)
    other = copy.deepcopy(model)

    def build(m):
        return m.configure_optimizers(1e-2, 0.01, (0.9, 0.99))

    def step(m, optimizer, seed):
        torch.manual_seed(seed)
        m(nanowm.example(cfg, 2))['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer = build(model)
    step(model, optimizer, 1)
    step(model, optimizer, 2)
    state = optimizer.state_dict() | {'params': checkpoint.named_parameters(model, optimizer)}
    state = copy.deepcopy(state)
    other.load_state_dict(model.state_dict())
    again = build(other)
    checkpoint.load_optimizer(other, again, state, 'there')
    step(model, optimizer, 3)
    step(other, again, 3)
    for p, q in zip(model.parameters(), other.parameters()):
        assert torch.equal(p, q)
    assert torch.isfinite(torch.cat([p.flatten() for p in model.parameters()])).all()
