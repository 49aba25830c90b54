"""bench/speedrun.py: an entry is run, judged and told from what is none."""
import json
import shutil
import sys

import pytest
from conftest import script

from bench import speedrun
from data.layout import identity, read_meta

TINY = ['--depth=2', '--hidden=16', '--heads=1', '--max_steps=2', '--val_every=0', '--batch_size=4']


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The rules, but for rooms of four episodes, and a goal that depends on the test."""
    data = str(tmp_path / 'minihack_boulders')
    script('data/minihack/prepare.py', '--level=boulders', '--episodes=4', '--moves=20', '--val=0-1',
           '--workers=1', f'--out={data}')
    monkeypatch.setattr(speedrun, 'DATA', data)
    monkeypatch.setattr(speedrun, 'SHA', identity(read_meta(data)))
    monkeypatch.setattr(speedrun, 'JUDGE', [*speedrun.JUDGE, '--n_clips=4'])
    monkeypatch.setattr(speedrun, 'SEEDS', (1,))
    return tmp_path


def entry(monkeypatch, out, *flags):
    monkeypatch.setattr(sys, 'argv', ['speedrun.py', 'config/minihack_wm_cpu.py', '--runs=1', *flags,
                                      f'--out={out}', '--threads=1', f'--data_dir={out.parent}', *TINY])
    speedrun.main()
    return json.loads(out.read_text())


def test_an_entry(small, monkeypatch, capfd):
    """Two steps teach nothing, so the goal is missed."""
    result = entry(monkeypatch, small / 'a.json')
    run, = result['runs']
    assert not result['counts'] and not run['passed'] and run['tile_agent'][7] < 0.9
    assert result['seconds'] == run['seconds'] > 1 and len(run['tile_agent']) == 16
    assert '--depth=2' in result['flags'] and 'a try: an entry is three' in capfd.readouterr().out


@pytest.mark.parametrize('shares, counts', [((0.95, 0.9, 1.0), True), ((1.0, 1.0, 0.89), False)])
def test_every_run_must_reach_the_goal(tmp_path, monkeypatch, shares, counts):
    given, shares = shares, iter(shares)

    def call(arguments, threads, quiet=False):
        judged = [flag.removeprefix('--out=') for flag in arguments if flag.startswith('--out=')]
        if judged:
            curve = dict.fromkeys(('tile_agent_shuffled', 'tile_changed'), [0.1] * 16)
            curve['tile_agent'] = [1.0] * 7 + [next(shares)] + [0.5] * 8
            path = tmp_path / judged[0]
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({'curve': curve, 'psnr_moving': 30.0}))
            (path.parent / 'latest').write_text('step_1')
            (path.parent / 'step_1').mkdir()
            meta = {'data_sha': speedrun.SHA, 'config': {'init_from': weights}}
            (path.parent / 'step_1' / 'meta.json').write_text(json.dumps(meta))
        return 100.0
    monkeypatch.setattr(speedrun, 'call', call)
    monkeypatch.setattr(speedrun, 'check_data', lambda: None)
    monkeypatch.setattr(speedrun, 'ROOT', str(tmp_path))
    (tmp_path / 'a.py').write_text('')
    monkeypatch.setattr(sys, 'argv', ['speedrun.py', 'a.py'])
    weights = 'out/other'
    with pytest.raises(SystemExit, match='from other weights: no entry'):
        speedrun.main()
    shutil.rmtree(tmp_path / 'out')
    weights, shares = '', iter(given)
    speedrun.main()
    result = json.loads((tmp_path / 'out/speedrun/a/result.json').read_text())
    assert result['counts'] is counts and result['seconds'] == 100 and len(result['runs']) == 3


def test_other_data_are_no_entry(small, monkeypatch):
    monkeypatch.setattr(speedrun, 'SHA', '0' * 64)
    with pytest.raises(SystemExit, match='the rules name 000000000000'):
        speedrun.check_data()


@pytest.mark.parametrize('flags, says', [
    (['config/none.py'], 'config/none.py: no such config'),
    (['config/minihack_wm_cpu.py', '--seed=7'], '--seed=7: flags of train.py but seed and out_dir may'),
    (['config/minihack_wm_cpu.py', '--out_dir=x'], '--out_dir=x: flags of train.py but'),
    (['config/minihack_wm_cpu.py', 'more'], 'more: flags of train.py but'),
    (['config/minihack_wm_cpu.py', '--threads=0'], '--threads=0: want 1 or more'),
    (['config/minihack_wm_cpu.py', '--runs=4'], 'invalid choice')])
def test_bad_flags(flags, says):
    _, err = script('bench/speedrun.py', *flags, code=2)
    assert says in err and 'Traceback' not in err
