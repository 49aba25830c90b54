"""data/pusht: the published recordings, read and checked; a simulator that plays them again."""
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from conftest import SHARED, one_line, script

from data.loader import Store, read_meta
from data.rollout import rollout

pytest.importorskip('pymunk', reason="needs the extra 'pusht'")
numcodecs = pytest.importorskip('numcodecs.blosc', reason="needs the extra 'pusht'")
from data.pusht import env as E  # noqa: E402
from data.pusht import prepare as P  # noqa: E402

TAR = os.path.realpath(os.path.join(SHARED, 'data', 'pusht', 'pusht_cchi_v7_replay.zarr.tar'))


@pytest.fixture(scope='module')
def published():
    if not os.path.exists(TAR):
        pytest.skip('no PushT recordings beside the repository (../shared/data/pusht)')
    return TAR


@pytest.fixture(scope='module')
def recorded(published):
    """state (25650, 5), action (25650, 2), keypoint (25650, 9, 2), ends (206,)."""
    return {array.split('/')[1]: P.rows(published, array, 0, P.header(published, array)[0])
            for array in P.ARRAYS if array != 'data/img'}


def demonstrations(recorded):
    starts = [0, *recorded['episode_ends'][:-1]]
    for i, (start, end) in enumerate(zip(starts, recorded['episode_ends'])):
        yield i, recorded['state'][start:end], recorded['action'][start:end]


# ---- the simulator ----

def test_published_start():
    env = E.make_env()
    env.reset(seed=100000)
    assert np.allclose(env.pose(), (235, 124, 299.613, 145.202, 5.37826), atol=1e-3)


def test_demonstrations_start_and_go_as_recorded(recorded):
    """Seed i is row 0 of episode i. With the recorded actions, all is where it was, to 1e-3 px."""
    env, best, won = E.make_env(), [], 0
    for i, state, action in demonstrations(recorded):
        env.reset(seed=i)
        score, off = 0.0, []
        for row, target in zip(state, action):
            off.append(np.abs(np.subtract(env.pose(), row)))
            reward, terminated, truncated, info = env.advance(target)
            score = max(score, reward)
            if terminated or truncated:
                break
        off = np.array(off)
        off[:, 4] = np.minimum(off[:, 4], 2 * np.pi - off[:, 4])
        assert off.max() < 1e-3, (i, off.max(0))
        best.append(score)
        won += info['won']
    assert np.mean(best) == pytest.approx(0.946, abs=1e-3) and won == 7


def test_keypoints_as_recorded(recorded):
    """On average to 0.01 px; 49 rows of the recordings themselves are off by more than 0.15."""
    rows = recorded['state'][::10]
    off = np.array([np.abs(np.array(E.placed(E.KEYPOINTS, *row[2:])) - points).max()
                    for row, points in zip(rows, recorded['keypoint'][::10])])
    assert off.mean() < 0.01 and (off > 0.15).sum() <= 49


def test_frames_as_recorded(published, recorded):
    """Mean absolute difference to stored pictures, of 255: 0.3 on average, 0.5 at worst."""
    ours = {row: E.shrink(E.picture(recorded['state'][row])).astype(float) for row in range(0, P.N, 611)}
    off = [np.abs(x - P.rows(published, 'data/img', row, row + 1)[0]).mean() for row, x in ours.items()]
    assert np.mean(off) < 0.3 and max(off) < 0.5


@pytest.mark.parametrize('pose, share', [
    ((0, 0, 0), 1.0), ((2, 0, 0), 0.947), ((4, 0, 0), 0.895), ((6, 0, 0), 0.844), ((8, 0, 0), 0.795)])
def test_coverage_of_shifted_marks(pose, share):
    """Published calibration; a shift of 2 px along the axes of the T's own frame, turned by 45 degrees."""
    x, y, angle = E.MARK
    assert E.covered(x + pose[0], y + pose[1], angle + pose[2]) == pytest.approx(share, abs=2e-3)


def test_coverage_is_shapelys():
    shapely = pytest.importorskip('shapely')

    def shape(pose):
        return shapely.union_all([shapely.Polygon(E.placed(part, *pose)) for part in (E.BAR, E.STEM)])
    rng, goal = np.random.default_rng(0), shape(E.MARK)
    for _ in range(200):
        pose = (*rng.normal(256, 60, 2), rng.uniform(0, 7))
        want = shape(pose).intersection(goal).area / goal.area
        assert E.covered(*pose) == pytest.approx(want, abs=1e-9)


def test_the_disc_does_not_feel_the_block():
    """A critically damped spring, in closed form: the path of its semi-implicit steps."""
    env = E.make_env()
    env.reset(seed=3)
    x, v = np.array(env.pose()[:2]), np.zeros(2)
    target = np.array([256.0, 300.0])
    for _ in range(5):
        env.advance(target)
        for _ in range(10):
            # a kinematic body moves by the velocity that it was given
            v = v + (100 * (target - x) - 20 * v) * 0.01
            x = x + v * 0.01
        assert np.allclose(env.pose()[:2], x, atol=1e-9)


def test_is_a_gymnasium_environment():
    from gymnasium.utils.env_checker import check_env
    for obs in 'keypoints', 'image':
        check_env(E.make_env(obs=obs), skip_render_check=True)


def test_episodes_end():
    env = E.make_env()
    env.reset(seed=0)
    env.block.angle = E.MARK[2]
    env.block.position = E.MARK[:2]
    env.disc.position = 20, 20
    _, reward, terminated, truncated, info = env.step((20, 20))
    assert reward == 1 and terminated and not truncated and info['won'] and info['coverage'] > 0.99
    with pytest.raises(AssertionError, match='reset first'):
        env.advance((0, 0))
    env.reset(seed=0)
    for _ in range(E.CAP):
        reward, terminated, truncated, info = env.advance((-5, 600))
    assert truncated and not terminated and not info['won'] and env.clipped == E.CAP
    with pytest.raises(AssertionError, match='not finite'):
        env.reset(seed=0)
        env.advance((np.nan, 0))
    with pytest.raises(SystemExit, match='seed = 4294967296: the starts of PushT are 0 to'):
        env.reset(seed=2**32)
    with pytest.raises(AssertionError, match='no episode yet'):
        E.make_env().advance((0, 0))


def test_same_seed_same_episode():
    """Whatever was played before; another seed is another start."""
    actions = np.random.default_rng(0).uniform(0, 512, (40, 2))

    def play(env, seed):
        env.reset(seed=seed)
        return [env.step(action)[0]['env_state'].tolist() for action in actions]
    env = E.make_env()
    first, other, again = play(env, 7), play(env, 8), play(env, 7)
    assert first == again == play(E.make_env(), 7) and first != other


def test_names(capsys):
    with pytest.raises(SystemExit, match="no environment 'pushT'; did you mean 'pusht'"):
        E.check_name('pushT')
    assert E.SUITES['all'] == ('pusht',) and E.seed_of('pusht', 49, E.SEED) == 100049


def test_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pymunk', None)
    with pytest.raises(SystemExit, match=re.escape("PushT needs: pip install -e '.[pusht]'")):
        E.make_env()


# ---- many at once ----

class Straight:
    """A policy that goes where it is told; it counts what it was shown."""

    def __init__(self, n): self.n, self.seen = n, []

    def __call__(self, obs, generators):
        self.seen.append({key: tuple(x.shape) for key, x in obs.items()})
        state = obs['state'][:, -1:]
        return state + torch.arange(1, self.n + 1)[None, :, None] * torch.tensor([4.0, -3.0])


def test_rollout_with_a_history(monkeypatch):
    """The last two observations; frames are drawn for those only; the same alone and in a batch."""
    drawn = []
    shrink = E.shrink
    monkeypatch.setattr(E, 'shrink', lambda image: drawn.append(1) or shrink(image))
    monkeypatch.setattr(E.PushT, 'cap', 24)
    act = Straight(8)
    games = rollout(E.environments(['pusht'] * 3, obs='image'), [5, 6, 7], act, history=2)
    assert act.seen == [{'state': (3, 2, 2), 'image.top': (3, 2, 3, 96, 96)}] * 3
    assert len(drawn) == 3 * (1 + 3 * 2)                 # the start, and the last two of each chunk
    alone, = rollout(E.environments(['pusht'], obs='image'), [6], Straight(8), history=2)
    assert np.array_equal(alone['actions'], games[1]['actions']) and alone['best'] == games[1]['best']
    assert len(alone['actions']) == 24 and alone['best'] >= alone['reward'] / 24


def test_history_repeats_the_start():
    seen = []

    def act(obs, generators):
        seen.append(obs['state'].clone())
        return obs['state'][:, -1:] + 5
    E_cap, E.PushT.cap = E.PushT.cap, 3
    try:
        rollout(E.environments(['pusht']), [0], act, history=2)
    finally:
        E.PushT.cap = E_cap
    assert torch.equal(seen[0][:, 0], seen[0][:, 1])
    assert torch.equal(seen[1][:, 0], seen[0][:, 1]) and not torch.equal(seen[1][:, 0], seen[1][:, 1])


# ---- the recordings ----

def store_of(folder, arrays, per_file=7):
    """Write a Zarr 2 store as the published one is, with numcodecs."""
    for name, rows in arrays.items():
        where = folder / name
        where.mkdir(parents=True)
        said = {'zarr_format': 2, 'order': 'C', 'filters': None, 'shape': list(rows.shape),
                'chunks': [per_file, *rows.shape[1:]], 'dtype': rows.dtype.str, 'fill_value': 0,
                'compressor': {'id': 'blosc', 'cname': 'zstd', 'clevel': 5, 'shuffle': 2, 'blocksize': 0}}
        (where / '.zarray').write_text(json.dumps(said))
        for k in range(-(-len(rows) // per_file)):
            piece = np.zeros((per_file, *rows.shape[1:]), rows.dtype)
            piece[:len(rows) - k * per_file][:per_file] = rows[k * per_file:(k + 1) * per_file]
            data = numcodecs.compress(piece.tobytes(), b'zstd', 5, 2)
            (where / '.'.join([str(k)] + ['0'] * (rows.ndim - 1))).write_bytes(data)
    return folder


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A set of 6 episodes in the published format, and its sha256 in the place of the published ones."""
    rng = np.random.default_rng(0)
    ends = np.array([5, 12, 20, 24, 31, 40])
    arrays = {'data/img': rng.integers(0, 256, (40, 96, 96, 3)).astype('<f4'),
              'data/state': rng.uniform(20, 500, (40, 5)).astype('<f4'),
              'data/action': rng.uniform(20, 500, (40, 2)).astype('<f4'),
              'data/keypoint': rng.uniform(20, 500, (40, 9, 2)).astype('<f4'), 'meta/episode_ends': ends}
    known = {name: (shape, keep, hashlib.sha256(arrays[name].astype(keep).tobytes()).hexdigest())
             for name, (shape, keep, _) in P.ARRAYS.items()}
    for name, value in {'ARRAYS': known, 'N': 40, 'EPISODES': 6, 'VAL': (1, 4)}.items():
        monkeypatch.setattr(P, name, value)
    for cached in P.archive, P.header, P.piece:
        cached.cache_clear()
    return store_of(tmp_path / 'pusht_cchi_v7_replay.zarr', arrays), arrays


def make(monkeypatch, *flags, code=0):
    """prepare.py's main in this process, with the small set's numbers."""
    monkeypatch.setattr(sys, 'argv', ['prepare.py', '--workers=1', *map(str, flags)])
    try:
        P.main()
    except SystemExit as stop:
        assert code and isinstance(stop.code, str), stop.code
        return stop.code
    assert not code


@pytest.mark.parametrize('kind', ['folder', 'parent', 'zip', 'tar'])
def test_reads_every_packing(kind, small, tmp_path, monkeypatch):
    store, arrays = small
    src = {'folder': store, 'parent': store.parent}.get(kind, tmp_path / f'set.{kind}')
    if kind == 'zip':
        with zipfile.ZipFile(src, 'w') as file:
            for path in sorted(store.rglob('*')):
                file.write(path, f'pusht/{path.relative_to(tmp_path)}')
    elif kind == 'tar':
        with tarfile.open(src, 'w') as file:
            file.add(store, store.name)
    make(monkeypatch, f'--src={src}', f'--out={tmp_path}/set')
    meta = read_meta(tmp_path / 'set')
    assert meta['counts'] == {'train': {'episodes': 4, 'frames': 26}, 'val': {'episodes': 2, 'frames': 14}}
    rows = np.r_[5:12, 24:31]
    got = {key: np.load(tmp_path / 'set' / 'val' / f'{key}.npy') for key in meta['keys']}
    assert np.array_equal(got['image.top'], arrays['data/img'][rows].transpose(0, 3, 1, 2))
    assert np.array_equal(got['state'], arrays['data/state'][rows, :2])
    assert np.array_equal(got['pose'], arrays['data/state'][rows])
    assert np.array_equal(got['action'], arrays['data/action'][rows])
    assert np.array_equal(got['env_state'], arrays['data/keypoint'][rows].reshape(14, 18))
    assert meta['padded'] == [] and meta['env'] == 'data.pusht.env' and meta['facts']['env_state_dim'] == 18
    training = np.setdiff1d(np.arange(40), rows)
    assert meta['stats']['action']['min'] == arrays['data/action'][training].min(0).tolist()
    assert str(tmp_path) not in meta['command'] and '--val=1,4 ' in meta['command']


def test_damaged_stores(small, tmp_path, monkeypatch):
    store, arrays = small

    def says(words):
        for cached in P.archive, P.header, P.piece:
            cached.cache_clear()
        line = make(monkeypatch, f'--src={store}', f'--out={tmp_path}/set', code=1)
        assert words in line and '\n' not in line and not (tmp_path / 'set').exists()
    cases = [('data/action/2.0', lambda path: path.unlink(), 'data/action/2.0 is missing'),
             ('data/img/1.0.0.0', lambda path: path.write_bytes(path.read_bytes()[:-9]),
              'data/img/1.0.0.0 is damaged'),
             ('data/state/0.0', lambda path: path.write_bytes(b''), 'data/state/0.0 is damaged'),
             ('data/state/.zarray', lambda path: path.unlink(), 'the store has no array data/state'),
             ('data/state/.zarray', lambda path: path.write_text('{'), 'data/state/.zarray is damaged'),
             ('data/state/.zarray', lambda path: path.write_text(path.read_text().replace('blosc', 'gzip')),
              'data/state is no Zarr 2 array'),
             ('data/state/.zarray', lambda path: path.write_text('[]'), 'data/state is no Zarr 2 array'),
             ('data/state/.zarray', lambda path: path.write_text('{"zarr_format": 2}'),
              'data/state is no Zarr 2 array'),
             ('data/action/1.0', lambda path: path.write_bytes((store / 'data/action/0.0').read_bytes()),
              'data/action is not that of the published set')]
    for name, spoil, words in cases:
        path = store / name
        whole = path.read_bytes()
        spoil(path)
        says(words)
        path.write_bytes(whole)
    def refused(src): return make(monkeypatch, f'--src={src}', f'--out={tmp_path}/set', code=1)
    assert refused(tmp_path / 'nothing').endswith(
        'not there; want the folder pusht_cchi_v7_replay.zarr, or a .zip or .tar of it')
    (tmp_path / 'text').write_text('no archive')
    assert 'want the folder' in refused(tmp_path / 'text')
    for kind in 'tar', 'gztar', 'zip':                   # the first half of an archive
        path = shutil.make_archive(str(tmp_path / 'half' / kind), kind, tmp_path, store.name)
        whole = open(path, 'rb').read()
        open(path, 'wb').write(whole[:len(whole) // 2])
        line = refused(path)
        assert '\n' not in line and re.search('damaged|missing|want the folder', line), line
    shutil.copytree(store, tmp_path / 'two' / 'a.zarr')
    shutil.copytree(store, tmp_path / 'two' / 'b.zarr')
    assert 'holds 2 Zarr stores' in refused(tmp_path / 'two')
    shutil.rmtree(store / 'meta')
    P.archive.cache_clear()
    assert 'holds 0 Zarr stores' in refused(store)


def test_missing_rows_of_a_file(small):
    store, _ = small
    short = numcodecs.compress(np.zeros((3, 2), '<f4').tobytes(), b'zstd', 5, 2)
    (store / 'data/action/1.0').write_bytes(short)
    with pytest.raises(SystemExit, match='holds 6 numbers, want 7 rows'):
        P.rows(str(store), 'data/action', 0, 40)


@pytest.mark.parametrize('value', [np.nan, np.inf, -0.5, 512.5])
def test_actions_off_the_board(value, small, monkeypatch):
    store, arrays = small
    rows = arrays['data/action'].copy()
    rows[13, 1] = value
    shutil.rmtree(store / 'data/action')
    store_of(store, {'data/action': rows})
    with pytest.raises(ValueError, match='at frame 1 is off the board; want 0 to 512 px'):
        P.episode(2, str(store), [*range(6)])


def test_extra_and_download(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'numcodecs.blosc', None)
    line = make(monkeypatch, f'--src={small[0]}', f'--out={tmp_path}/set', code=1)
    assert line == "PushT's recordings need: pip install -e '.[pusht]'"
    with pytest.raises(SystemExit, match='give --src=pusht.zip'):
        P.download(f'file://{tmp_path}/nowhere.zip', tmp_path / 'a' / 'pusht.zip')
    assert not [*(tmp_path / 'a').iterdir()]
    (tmp_path / 'there.zip').write_bytes(b'abc' * 1000)
    P.download(f'file://{tmp_path}/there.zip', tmp_path / 'a' / 'pusht.zip')
    assert (tmp_path / 'a' / 'pusht.zip').read_bytes() == b'abc' * 1000


def test_without_src_it_is_downloaded(small, tmp_path, monkeypatch):
    """Once: the archive is kept. A second call for a set that is there does nothing."""
    archive = shutil.make_archive(str(tmp_path / 'server' / 'pusht'), 'zip', tmp_path, small[0].name)
    monkeypatch.setattr(P, 'URL', f'file://{archive}')
    monkeypatch.setattr(P, 'DOWNLOAD', tmp_path / 'cache' / 'pusht.zip')
    make(monkeypatch, f'--out={tmp_path}/set')
    assert '--src=pusht.zip' in read_meta(tmp_path / 'set')['command'] and P.DOWNLOAD.exists()
    P.DOWNLOAD.unlink()
    os.remove(archive)
    with pytest.raises(SystemExit) as stop:
        monkeypatch.setattr(sys, 'argv', ['prepare.py', f'--out={tmp_path}/set'])
        P.main()
    assert stop.value.code == 0


def test_a_broken_connection_leaves_nothing(tmp_path, monkeypatch):
    class Answer(io.BytesIO):
        headers = {'Content-Length': '5000'}
    monkeypatch.setattr(P.urllib.request, 'urlopen', lambda *args, **keys: Answer(b'x' * 900))
    with pytest.raises(SystemExit, match='broke after 900 of 5000 bytes'):
        P.download('https://somewhere', tmp_path / 'a.zip')
    assert not [*tmp_path.iterdir()]


def test_val_names_episodes(small, tmp_path, monkeypatch):
    """A number is that of an episode; a share is drawn of all; --limit keeps what it can of the published."""
    store, arrays = small
    for val, want in ('0,3', [0, 3]), ('2-3', [2, 3]):
        make(monkeypatch, f'--src={store}', f'--out={tmp_path}/{val}', f'--val={val}')
        got, spans = (np.load(tmp_path / val / 'val' / f'{key}.npy') for key in ('pose', 'episodes'))
        firsts = [0, *arrays['meta/episode_ends'][:-1]]
        assert [got[start].tolist() for start, _ in spans] == [arrays['data/state'][firsts[i]].tolist()
                                                               for i in want]
    make(monkeypatch, f'--src={store}', f'--out={tmp_path}/few', '--limit=3')
    assert read_meta(tmp_path / 'few')['counts']['val']['frames'] == 7            # episode 1
    make(monkeypatch, f'--src={store}', f'--out={tmp_path}/drawn', '--max_episodes=2')
    assert read_meta(tmp_path / 'drawn')['counts']['train']['episodes'] == 2
    line = make(monkeypatch, f'--src={store}', '--max_episodes=2', '--val=0.1', code=1)
    assert line.startswith('--val=0.1: the published draw')


def test_published_draw():
    assert len(P.draw(0)) == 202 and sum(P.draw(90)) == 9897 and P.draw(90)[:5] == [7, 9, 10, 11, 13]
    drawn = np.random.default_rng(42).choice(206, 4, replace=False)
    assert tuple(sorted(drawn)) == P.VAL
    _, err = script('data/pusht/prepare.py', '--max_episodes=203', code=1)
    assert one_line(err).startswith('--max_episodes=203: want 1 to 202')


@pytest.mark.slow
def test_published_set(published, tmp_path):
    """All of it: windows, limits, sha256; nothing of the four validation episodes in the statistics."""
    import imf_policy
    from contract import edges
    script('data/pusht/prepare.py', f'--src={published}', '--workers=1', f'--out={tmp_path}/pusht_image')
    meta = read_meta(tmp_path / 'pusht_image')
    assert meta['counts']['train'] == {'episodes': 202, 'frames': 25218}
    assert meta['counts']['val'] == {'episodes': 4, 'frames': 432}
    stats = meta['stats']
    assert (stats['action']['min'], stats['action']['max']) == ([12, 25], [511, 511])
    limits = np.array([stats['state']['min'], stats['state']['max']])
    assert np.abs(limits - [[13.456, 32.938], [496.146, 510.958]]).max() < 1e-3
    cfg = imf_policy.Config(obs='keypoints')
    for split, n in ('train', 25_016), ('val', 428):
        store = Store(tmp_path / 'pusht_image', split, imf_policy.windows(cfg), **edges(imf_policy, cfg))
        assert len(store) == n
    last = store.windows_at(np.array([len(store) - 1]))
    assert last['mask'].tolist() == [[True] * 3 + [False] * 7]   # one ahead of the last observation
    assert (last['action'][0, 3:] == last['action'][0, 2]).all()
