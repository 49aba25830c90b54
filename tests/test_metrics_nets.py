"""
LPIPS, FID, KID and FVD of metrics.py: real weights from ../shared where they lie, else weights by a formula;
the numbers are those of lpips 0.1.4, pytorch-fid 0.3.0 and torchmetrics 1.9.0.
"""
import os
import warnings

import numpy as np
import pytest
import torch
from conftest import SHARED
from safetensors.torch import load_file, save_file
from test_metrics import pair

import checkpoint
import metrics
from metrics import enlargement, frechet, i3d_features, inception_features, kid, lpips

WEIGHTS = os.path.join(SHARED, 'weights')


@pytest.fixture(autouse=True)
def forget():
    """Networks are kept for the life of a process; each test begins without, and without the network."""
    metrics.network.cache_clear()
    metrics.i3d.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; whoever wants to download fails."""
    monkeypatch.setenv('NANOWORLD_CACHE', str(tmp_path))
    monkeypatch.setattr(checkpoint, 'fetch', no_network, raising=False)
    return tmp_path


def no_network(url, sha256='', size=0):
    pytest.fail(f'wanted to fetch {url}')


@pytest.fixture
def real(cache):
    """The cache with the weights that lie in ../shared."""
    if not os.path.isdir(WEIGHTS):
        pytest.skip('no weights beside the repository (../shared/weights)')
    for file in os.listdir(WEIGHTS):
        (cache / file).symlink_to(os.path.join(WEIGHTS, file))
    return cache


def by_formula(state):
    """
    Weights that need neither a file nor a generator: number i of the n-th key is a hash of (i, n). They look
    like an initialisation for ReLU, and batch statistics differ from 0 and 1.
    """
    weights = {}
    for n, key in enumerate(sorted(state)):
        shape, size = state[key].shape, state[key].numel()
        h = np.uint32(2654435761) * np.arange(size, dtype=np.uint32) + np.uint32(40503 * n + 12345)
        h ^= h >> np.uint32(16)
        h *= np.uint32(2246822519)
        h ^= h >> np.uint32(13)
        u = h / 2 ** 32
        if len(shape) > 1: w = (2 * u - 1) * np.sqrt(6 / np.prod(shape[1:]))
        elif key.endswith('num_batches_tracked'): w = u * 0
        elif key.endswith('running_var'): w = 0.5 + u
        elif key.endswith('bn.weight'): w = 0.8 + 0.4 * u
        else: w = 0.2 * (u - 0.5)
        weights[key] = torch.from_numpy(w).to(state[key].dtype).view(shape)
    return weights


def shapes(build):
    """Its state dict without numbers."""
    with torch.device('meta'): return build().state_dict()


def one_line(call, *args, **kw):
    """What a call says that ends the program."""
    with pytest.raises(SystemExit) as stop: call(*args, **kw)
    said = str(stop.value)
    assert said and '\n' not in said
    return said


# ---- LPIPS ----

@pytest.mark.parametrize('net, H, value', [('alex', 64, 0.016787391), ('alex', 256, 0.043729529),
                                           ('squeeze', 64, 0.020434167), ('squeeze', 256, 0.019027483)])
def test_lpips_frozen(real, net, H, value):
    assert lpips(*pair(H), net=net).item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize('net, values', [('alex', [0.131169, 0.141963]), ('squeeze', [0.10238, 0.09377])])
def test_lpips_where_poolings_do_not_divide(real, net, values):
    """Noise of 100 x 100 from torchmetrics' documentation: SqueezeNet's poolings round up."""
    g = torch.Generator().manual_seed(42)
    x, y = (torch.rand(2, 3, 100, 100, generator=g).movedim(1, -1) for _ in range(2))
    assert lpips(x, y, net).tolist() == pytest.approx(values, abs=1e-5)


def test_lpips_vgg(real):
    """Real heads behind convolutions by formula: what lpips 0.1.4 makes of the same."""
    features = {key: w for key, w in shapes(metrics.vgg16).items() if key.startswith('features.')}
    save_file(by_formula(features), real / 'vgg16_features.safetensors')
    assert lpips(*pair(64), net='vgg').item() == pytest.approx(0.02417478, rel=1e-4)


def test_lpips_of_black_and_white(real):
    """0.814 in the whole range [-1, 1]; fed with [0, 1] alex would say 0.578. Equal frames: 0."""
    black, white = torch.zeros(2, 64, 64, 3), torch.ones(2, 64, 64, 3)
    assert lpips(black, white).tolist() == pytest.approx([0.813954] * 2, abs=1e-5)
    assert lpips(white, white).tolist() == [0, 0]


@pytest.mark.parametrize('net, sums', [
    ('alex', [2.34953, 16.14303, 39.26844, 27.19718, 20.31718]),
    ('vgg', [6.92599, 8.85833, 17.51501, 51.52132, 47.03485]),
    ('squeeze', [5.69010, 1.18528, 16.32656, 71.01263, 37.37072, 24.26287, 17.59055])])
def test_the_published_heads_fit(real, net, sums):
    """As many, and as wide, as the layers that are compared; their sums are those of v0.1."""
    heads = load_file(real / f'lpips_heads_{net}_v0.1.safetensors')
    built = shapes(metrics.NETWORKS[net][0])
    assert {key: w.shape for key, w in built.items() if key.startswith('lin')} == \
        {key: w.shape for key, w in heads.items()}
    assert [heads[f'lin{k}.model.1.weight'].sum().item() for k in range(len(sums))] == \
        pytest.approx(sums, abs=1e-4)


@pytest.mark.parametrize('net, parameters', [('alex', 2_469_696), ('vgg', 14_714_688), ('squeeze', 722_496),
                                             ('inception', 21_785_568)])
def test_parameter_counts(net, parameters):
    """Of the convolutions; Inception without its classifier of 2048 x 1008 + 1008."""
    with torch.device('meta'): built = metrics.NETWORKS[net][0]()
    assert sum(p.numel() for p in getattr(built, 'features', built).parameters()) == parameters


def test_lpips_per_frame(real, monkeypatch):
    """Any shape in front; the same in small parts, inside autocast, and of float64; no gradients."""
    x, y = torch.rand(2, 2, 3, 70, 64, 3, generator=torch.Generator().manual_seed(0))
    score = lpips(x.requires_grad_(), y)
    assert score.shape == (2, 3) and score.dtype == torch.float32 and not score.requires_grad
    assert (score > 0.01).all() and score.flatten().unique().numel() == 6
    assert torch.allclose(score, lpips(y, x), atol=1e-6)
    assert lpips(x[1, 2], y[1, 2]).item() == pytest.approx(score[1, 2].item(), abs=1e-6)
    with torch.autocast('cpu', dtype=torch.bfloat16): assert torch.equal(lpips(x, y), score)
    assert torch.allclose(lpips(x.double(), y.double()), score, atol=1e-6)
    calls = []
    judge = metrics.network('alex', 'cpu')
    monkeypatch.setattr(metrics, 'network', lambda *name: lambda *a: calls.append(len(a[0])) or judge(*a))
    monkeypatch.setattr(metrics, 'AT_ONCE', 4 * 64 * 70)
    assert torch.allclose(lpips(x, y), score, atol=1e-6) and calls == [4, 2]


def test_full_precision_and_no_gradients_inside():
    """Also where a training has switched TF32 on and computes in bfloat16; and it finds all as it was."""
    flag, x = torch.backends.cudnn, torch.ones(3, 1, 1, 3)

    def look(part):
        assert not flag.allow_tf32 and flag.enabled and not torch.is_grad_enabled()
        assert part.shape == (3, 3, 1, 1) and (part == 1).all()      # white
        return part.flatten(1) @ part.flatten(1).T
    before = flag.allow_tf32
    try:
        flag.allow_tf32 = True
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert metrics.in_parts(look, 1, x).dtype == torch.float32
            assert (x.flatten(1) @ x.flatten(1).T).dtype == torch.bfloat16
        assert flag.allow_tf32 and torch.is_grad_enabled()
    finally:
        flag.allow_tf32 = before


@pytest.mark.parametrize('H, W, k', [(28, 28, 3), (40, 63, 2), (16, 90, 4)])
def test_small_frames_are_enlarged(real, H, W, k):
    x, y = torch.rand(2, 1, H, W, 3, generator=torch.Generator().manual_seed(0))
    large = [torch.from_numpy(np.kron(z.numpy(), np.ones((1, k, k, 1), np.float32))) for z in (x, y)]
    assert enlargement(H, W) == k and min(large[0].shape[1:3]) >= 64
    assert enlargement(*large[0].shape[1:3]) == 1
    for net in 'alex', 'squeeze':
        assert torch.allclose(lpips(x, y, net), lpips(*large, net), atol=1e-6)


@pytest.mark.parametrize('pred, message', [
    (torch.zeros(1, 64, 64, 1), r'\(1, 64, 64, 1\) and target \(1, 64, 64, 3\)'),
    (torch.zeros(1, 64, 64, 3, dtype=torch.uint8), 'divide by 255'),
    (torch.full((1, 64, 64, 3), 255.0), r'lie in \[0, 1\], got 255'),
    (torch.full((1, 64, 64, 3), -1.0), r'lie in \[0, 1\], got -1'),
])
def test_what_is_no_frame_is_refused(real, pred, message):
    with pytest.raises(AssertionError, match=message): lpips(pred, torch.zeros(1, 64, 64, 3))


def test_only_rgb_and_known_nets(real):
    grey, rgb = torch.zeros(1, 64, 64, 1), torch.zeros(1, 64, 64, 3)
    with pytest.raises(AssertionError, match=r'want frames \(..., H, W, 3\), got \(1, 64, 64, 1\)'):
        lpips(grey, grey)
    with pytest.raises(AssertionError, match=r'got \(1, 3, 64, 64\)'): inception_features(rgb.movedim(-1, 1))
    with pytest.raises(AssertionError, match="net = 'inception': choose alex, vgg or squeeze"):
        lpips(rgb, rgb, 'inception')


# ---- FID and KID ----

def test_inception_by_formula(cache):
    """What pytorch-fid 0.3.0 makes of the same weights. Counters of batches may lack, as in old files."""
    weights = by_formula(shapes(metrics.inception))
    counters = [key for key in weights if key.endswith('num_batches_tracked')]
    for key in counters[::2]: del weights[key]
    save_file(weights, cache / 'inception_fid.safetensors')
    f = inception_features(torch.stack(pair(64)).view(1, 2, 64, 64, 3))
    assert f.shape == (2, 2048) and f.dtype == np.float64
    assert f.mean(1) == pytest.approx([2.911587, 3.166959], rel=1e-4)
    assert f.std(1, ddof=1) == pytest.approx([3.991764, 4.338894], rel=1e-4)
    assert [f[0, 1], f[1, 2045]] == pytest.approx([6.429252, 4.515586], rel=1e-4)


def lcg(seed, rows, columns):
    """Uniform in [0, 1), by the oldest generator there is."""
    values, s = [], seed
    for _ in range(rows * columns):
        s = (1664525 * s + 1013904223) % 2 ** 32
        values.append(s / 2 ** 32)
    return np.array(values).reshape(rows, columns)


def two_sets(n1, n2, d): return lcg(1, n1, d), 1.1 * lcg(2, n2, d) + 0.05


@pytest.mark.parametrize('shape, distance', [((64, 64, 16), 0.5168164224890082),
                                             ((50, 60, 80), 6.52996661205),          # more numbers than rows
                                             ((300, 280, 32), 0.5478703159181606)])
def test_frechet_frozen(shape, distance):
    """pytorch-fid's, by either way to the trace: columns of zeros change the way and not the distance."""
    A, B = two_sets(*shape)
    assert A[0, :3].tolist() == [0.23645552527159452, 0.3692706737201661, 0.5042420323006809]
    assert frechet(A, B) == pytest.approx(distance, rel=1e-7)
    assert frechet(B, A) == pytest.approx(distance, rel=1e-7)
    wider = [np.hstack([x, np.zeros((len(x), 300))]) for x in (A, B)]
    assert frechet(*wider) == pytest.approx(distance, rel=1e-7)
    for x in A, B, *wider: assert abs(frechet(x, x)) < 1e-9


def test_frechet_closed_form():
    """
    One number a row: (m1 - m2)^2 + (s1 - s2)^2. Points, two of each kind: the distance of the means. float32
    features are computed on as float64.
    """
    a, b = np.random.default_rng(0).normal([1, 3], [2, 0.5], (500, 2)).T
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet(a[:, None], b[:, None]) == pytest.approx(expected, rel=1e-10)
    assert frechet([[0, 0], [0, 0]], [[3, 4], [3, 4]]) == pytest.approx(25)
    A, B = (x.astype(np.float32) for x in two_sets(300, 280, 32))
    assert frechet(A, B) == frechet(A.astype(np.float64), B.astype(np.float64))


def test_kid_frozen():
    """torchmetrics' poly_mmd takes sets of one size."""
    A, B = two_sets(280, 280, 32)
    assert kid(A, B) == pytest.approx(0.07685908912548545, abs=1e-9)


def test_kid_naive():
    """Pair by pair, sets of two sizes; unbiased: two halves of one set are 0 apart in the mean."""
    A, B = two_sets(5, 4, 3)
    k = lambda x, y: (sum(a * b for a, b in zip(x, y)) / 3 + 1) ** 3
    same = [np.mean([k(x, y) for i, x in enumerate(S) for j, y in enumerate(S) if i != j]) for S in (A, B)]
    assert kid(A, B) == pytest.approx(sum(same) - 2 * np.mean([k(x, y) for x in A for y in B]), abs=1e-12)
    rng = np.random.default_rng(0)
    scores = [kid(*rng.normal(size=(2, 20, 8))) for _ in range(300)]
    assert abs(np.mean(scores)) < 3 * np.std(scores) / 300 ** 0.5 and min(scores) < 0


@pytest.mark.parametrize('score', [frechet, kid])
def test_one_row_is_no_set(score):
    with pytest.raises(AssertionError, match='1 and 5 rows of features'):
        score(np.ones((1, 3)), np.ones((5, 3)))


# ---- FVD ----

class StandIn(torch.nn.Module):
    """Called like I3D, a hundredth of its size: looks at patches of 8 x 8 pixels, 32 apart, in two frames."""

    def __init__(self, out=400):
        super().__init__()
        self.conv = torch.nn.Conv3d(3, out, (2, 8, 8), (2, 32, 32))

    def forward(self, x, rescale: bool = True, resize: bool = True, return_features: bool = False):
        if rescale: x = x / 127.5 - 1
        if resize: x = torch.nn.functional.interpolate(x, size=[x.shape[2], 224, 224])
        y = self.conv(x).mean([2, 3, 4])
        return y if return_features else y.softmax(1)


def scripted(path, out=400):
    """A stand-in of 600 KB at this path -> its weights and biases."""
    torch.manual_seed(0)
    net = StandIn(out)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        torch.jit.save(torch.jit.script(net), path)
    return net.conv.weight.detach().double().numpy(), net.conv.bias.detach().double().numpy()


def by_hand(clips, weight, bias):
    """What the stand-in sees of clips (B, T, 224, 224, 3) as they are, in float64."""
    B, T = clips.shape[:2]
    patches = clips.reshape(B, T // 2, 2, 7, 32, 7, 32, 3)[:, :, :, :, :8, :, :8]
    return np.einsum('bthwc,octhw->bo', patches.mean((1, 3, 5)), weight) + bias


def bilinear(n, side):
    """(side, n): the share of each of n rows in each of `side`, by the distance of their middles."""
    where = ((np.arange(side) + 0.5) * n / side - 0.5).clip(0, n - 1)
    return np.maximum(0, 1 - abs(where[:, None] - np.arange(n)))


@pytest.mark.parametrize('H, W', [(224, 224), (56, 96)])
def test_what_the_fvd_network_is_fed(tmp_path, monkeypatch, H, W):
    """[-1, 1] at 224 x 224, channels before time: any other way gives other features."""
    path = str(tmp_path / 'i3d.pt')
    weights = scripted(path)
    clips = np.random.default_rng(0).random((3, 10, H, W, 3))
    large = np.einsum('yh,xw,bthwc->btyxc', bilinear(H, 224), bilinear(W, 224), clips, optimize=True)
    expected = by_hand(2 * large - 1, *weights)
    with warnings.catch_warnings():
        warnings.simplefilter('error')                  # the one about TorchScript is no news for a user
        features = i3d_features(torch.from_numpy(clips), path)
    assert features.shape == (3, 400) and features.dtype == np.float64
    assert np.abs(features - expected).max() < 1e-5
    for wrong in (large, 255 * large, 2 * large.swapaxes(2, 3) - 1, 2 * large[..., ::-1] - 1,
                  2 * large[:, ::-1] - 1):
        assert np.abs(by_hand(wrong, *weights) - expected).max() > 1e-3
    monkeypatch.setattr(metrics, 'AT_ONCE', 1)          # clip by clip
    assert np.abs(i3d_features(torch.from_numpy(clips), path) - features).max() < 1e-6


def test_fvd_of_black_and_white(tmp_path):
    """No spread, so the distance is that of the two features: w.1 + b against -w.1 + b."""
    path = str(tmp_path / 'i3d.pt')
    weight, _ = scripted(path)
    black, white = (i3d_features(torch.full((2, 10, 16, 16, 3), float(value)), path) for value in (0, 1))
    assert frechet(black, white) == pytest.approx(4 * (weight.sum((1, 2, 3, 4)) ** 2).sum(), rel=1e-5)


def test_what_is_no_clip_is_refused(tmp_path):
    path = str(tmp_path / 'i3d.pt')
    scripted(path, out=8)
    with pytest.raises(AssertionError, match='10 predicted frames or more, got 9'):
        i3d_features(torch.zeros(1, 9, 16, 16, 3), path)
    with pytest.raises(AssertionError, match=r'wants clips \(B, T, H, W, 3\), got \(10, 16, 16, 3\)'):
        i3d_features(torch.zeros(10, 16, 16, 3), path)
    with pytest.raises(AssertionError, match=r'got \(1, 10, 3, 16, 16\)'):
        i3d_features(torch.zeros(1, 10, 3, 16, 16), path)
    with pytest.raises(AssertionError, match=r'400 numbers a clip, this network \(1, 8\)'):
        i3d_features(torch.zeros(1, 10, 16, 16, 3), path)


def test_damaged_torchscript(tmp_path):
    path = tmp_path / 'i3d.pt'
    scripted(str(path))
    whole = path.read_bytes()
    for content in whole[:-1000], whole[:100], b'', b'<html>not found</html>':
        path.write_bytes(content)
        assert one_line(metrics.i3d, str(path), 'cpu').startswith(f'cannot read {path}: ')
    assert 'TorchScript of I3D' in one_line(metrics.i3d, str(tmp_path / 'missing.pt'), 'cpu')
    torch.save({'a': torch.zeros(1)}, path)              # weights alone are no TorchScript
    assert one_line(metrics.i3d, str(path), 'cpu')


def test_i3d_is_fetched_with_its_digest(tmp_path, monkeypatch):
    """Code from the network: never without the sha256."""
    path, asked = str(tmp_path / 'i3d.pt'), []
    scripted(path)
    monkeypatch.setattr(checkpoint, 'fetch', lambda *args: asked.append(args) or path, raising=False)
    for _ in range(2): i3d_features(torch.zeros(1, 10, 16, 16, 3))
    (url, sha256), = asked
    assert url.endswith('/1c2d61711c52571ad617a1063e6fa691b212e184/i3d_torchscript.pt')
    assert sha256 == 'bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2'


@pytest.mark.skipif('NANOWORLD_I3D' not in os.environ, reason='NANOWORLD_I3D names no i3d_torchscript.pt')
def test_the_real_i3d():
    """common_metrics_on_video_quality prints 151.256 for eight black clips against eight white ones."""
    black, white = (i3d_features(torch.full((8, 30, 64, 64, 3), float(value)), os.environ['NANOWORLD_I3D'])
                    for value in (0, 1))
    assert frechet(black, white) == pytest.approx(151.26, abs=1)


# ---- weights ----

@pytest.fixture
def published(cache, monkeypatch):
    """A server: files like the published ones, AlexNet with its classifier -> what was asked of it."""
    asked = []

    def fetch(url, sha256='', size=0):
        asked.append((os.path.basename(url), sha256))
        keys = {key: w for key, w in shapes(metrics.alexnet).items()
                if key.startswith('lin') == ('alexnet' not in url)}
        weights = {key: torch.nn.Parameter(w) for key, w in by_formula(keys).items()}
        if 'alexnet' in url: weights['classifier.6.bias'] = torch.zeros(1000)
        path = cache / os.path.basename(url)
        torch.save(weights, path)
        return str(path)
    monkeypatch.setattr(checkpoint, 'fetch', fetch, raising=False)
    return asked


def test_of_a_classifier_only_what_we_use_stays(cache, published):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    net = metrics.network('alex', 'cpu')
    assert torch.equal(torch.get_rng_state(), before)    # a training would go on with other noise
    assert published == [
        ('alexnet-owt-7be5be79.pth', '7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02'),
        ('alex.pth', 'df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0')]
    assert sorted(os.listdir(cache)) == ['alexnet_features.safetensors', 'lpips_heads_alex_v0.1.safetensors']
    kept = load_file(cache / 'alexnet_features.safetensors')
    assert len(kept) == 10 and all(key.startswith('features.') for key in kept)
    assert os.stat(cache / 'alexnet_features.safetensors').st_mode & 0o777 == 0o666 & ~checkpoint.umask()
    for key, w in kept.items(): assert torch.equal(net.state_dict()[key], w)
    assert not any(p.requires_grad for p in net.parameters()) and not net.training
    metrics.network.cache_clear()
    metrics.network('alex', 'cpu')
    assert metrics.network('alex', 'cpu') is metrics.network('alex', 'cpu') and len(published) == 2


def test_another_process_was_faster(cache, published, monkeypatch):
    """It has made the file and deleted the one that both had fetched."""
    slow = checkpoint.fetch

    def fetch(url, sha256='', size=0):
        path = slow(url, sha256, size)
        save_file({k: w.detach() for k, w in torch.load(path).items() if 'classifier' not in k},
                  cache / ('alexnet_features.safetensors' if 'alexnet' in url else
                           'lpips_heads_alex_v0.1.safetensors'))
        os.remove(path)
        return path
    monkeypatch.setattr(checkpoint, 'fetch', fetch)
    assert len(metrics.network('alex', 'cpu').state_dict()) == 15


def test_nothing_half_written(cache, published, monkeypatch):
    """A full disk, or a file that is none: one line, and the next try starts anew."""
    def full(weights, path):
        with open(path, 'wb') as f: f.write(b'half')
        raise OSError(28, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(metrics, 'save_file', full)
        said = one_line(metrics.network, 'alex', 'cpu')
    assert 'alexnet_features.safetensors' in said and 'No space left on device; make room' in said
    assert os.listdir(cache) == ['alexnet-owt-7be5be79.pth']
    metrics.network('alex', 'cpu')


def test_damaged_cache(real):
    """Cut, text, lacking a key, of another shape: one line with the name of the file."""
    path = real / 'alexnet_features.safetensors'
    weights, whole = load_file(path), path.read_bytes()
    path.unlink()
    for content in whole[:1000], b'', b'<html>not found</html>':
        path.write_bytes(content)
        said = one_line(metrics.network, 'alex', 'cpu')
        assert said.startswith(f'cannot read {path}: ') and 'delete it' in said
    lacking = {key: w for key, w in weights.items() if key != 'features.3.bias'}
    save_file(lacking, path)
    assert 'alexnet_features and lpips_heads_alex_v0.1' in (said := one_line(metrics.network, 'alex', 'cpu'))
    assert 'lacks features.3.bias' in said
    save_file(lacking | {'features.3.bias': torch.zeros(7)}, path)
    assert 'features.3.bias is [7], the model has [192]' in one_line(metrics.network, 'alex', 'cpu')


def test_kid_in_blocks():
    """More rows than one block has: the sum over all pairs, by hand."""
    pred, true = np.random.default_rng(0).normal(size=(2, 2300, 3))
    true = true[:1500] + 0.1

    def kernel(x, y): return (x @ y.T / 3 + 1) ** 3
    xx, yy = kernel(pred, pred), kernel(true, true)
    by_hand = (xx.sum() - xx.trace()) / (2300 * 2299) + (yy.sum() - yy.trace()) / (1500 * 1499)
    by_hand -= 2 * kernel(pred, true).mean()
    assert metrics.kid(pred, true) == pytest.approx(by_hand, rel=1e-9)


def test_grey_frames_are_refused_before_anything_is_fetched(monkeypatch):
    def network(*_): raise AssertionError('asked for weights')
    monkeypatch.setattr(metrics, 'network', network)
    with pytest.raises(AssertionError, match=r'want frames \(..., H, W, 3\)'):
        metrics.lpips(torch.zeros(2, 64, 64, 1), torch.zeros(2, 64, 64, 1), 'vgg')
