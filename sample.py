"""
Dream: load a trained model, let it imagine, draw it.

    python sample.py --ckpt=out/minihack_wm_cpu --futures=4     one true frame, four held-down commands
    python sample.py --ckpt=out/minihack_wm_cpu                 recorded clips: truth above, dream below
    python sample.py --ckpt=out/minihack_wm_cpu --out=film.png  the same as a film strip, for paper
    python sample.py --ckpt=out/arx5 --versus=out/other         a robot: truth | other run | this run
    python sample.py --ckpt=out/arx5 --out=arm.png              its curves (extra: plot)
    python sample.py --ckpt=out/g1_act_cpu                      a policy beside recordings, under their frames
    python sample.py --ckpt=out/minihack_dagger --env=ENV       a planner: an episode beside its plan
    python sample.py --ckpt=out/pusht_imf --versus=out/other    a policy: the same start, beside another run
    python sample.py --ckpt=out/discs_pi0_cpu                   one that reads: the same start, four sentences

Pictures land in samples/ of the run unless --out says otherwise. Keys of the model that only sampling uses
can be given too, such as --sample_steps=2: `--ckpt=... --help` lists them.
"""
from configurator import Owner, configure, polite_exit

polite_exit()                 # before torch: its import takes seconds, and Ctrl-C should end those too

import os
import sys

import numpy as np

import checkpoint
import contract
from data.loader import Store, read_meta, simulator
from draw import env as draw_env
from draw import states, video
from draw.actions import actions
from draw.common import check_out, cut
from protocols.common import Decoded, codec_of, file_of, fits
from protocols.env import simulator_of

ckpt = ''                     # out_dir of a run, or one of its step folders
which = 'latest'              # latest | best, when ckpt is an out_dir
ema = True                    # averaged weights where the checkpoint has them
versus = ''                   # robots: another run on the same data, drawn between the truth and this one;
                              # policies: drawn beside this one, instead of this one with a hundred calls
dataset = ''                  # data folder to take clips from; '' = the checkpoint's
data_dir = ''                 # where data folders lie; '' = the checkpoint's
split = 'val'                 # val | train
n_clips = 0                   # clips in the picture; 0: videos 6, policies 2, futures and robots 1
length = 0                    # frames to dream; 0: videos 16, robots and policies 150
n_context = 0                 # true frames given; 0 = as many as the model was made for
futures = 0                   # videos: hold down so many different commands instead of the recorded ones
env = ''                      # policies with a simulator: which environment; '' = its first
stride = 1                    # videos: new frames per window
seed = 0                      # of clips and noise
fps = 0                       # pictures per second; 0: videos 4, robots about 25, at true speed whatever fps
vae = ''                      # models of latents: the codec, sd | taesd | PATH; '' = the one meta.json names
scale = 0                     # videos: screen pixels per pixel, 0: about 112 wide; robots: 80 px, 0: 3
device = 'auto'               # auto = cuda if there is one, else cpu
out = ''                      # .gif or .png; '' = samples/<step> in the run's folder

# Kinds of pictures: clips and frames by default, and the keys that it takes beside the common ones.
KINDS = {'strips.gif': (6, 16, 'n_clips length n_context stride fps scale'),
         'film.png': (6, 16, 'n_clips length n_context stride scale'),
         'futures.gif': (1, 16, 'futures n_clips length n_context stride fps scale'),
         'arms.gif': (1, 150, 'versus n_clips length n_context fps scale'),
         'curves.png': (1, 150, 'length n_context'),
         'actions.png': (2, 150, 'n_clips length'),
         'episode.gif': (1, 0, 'env length fps scale'),
         'side.gif': (1, 0, 'versus env length fps'),
         'sentences.gif': (1, 0, 'length fps')}
LIMITS = {'n_clips': (0, 64), 'length': (0, 10_000), 'n_context': (0, 10_000), 'futures': (0, 64),
          'stride': (1, 10_000), 'seed': (0, 2**63 - 1), 'scale': (0, 64), 'fps': (0, 50)}


def samplers(wanted):
    """For configure(): the keys of the model that only sampling reads, with the checkpoint's values."""
    if wanted['ckpt']:
        meta = checkpoint.read_meta(checkpoint.find(wanted['ckpt'], wanted['which']))
        M = contract.load(meta['model'])
        values = vars(M.Config()) | checkpoint.plain_config(meta['model_config'], M)
        yield Owner(f'{M.__name__}.Config', {key: values[key] for key in contract.sampling(M)}, M.__file__)


def possible(model, reads, meta, versus, futures):
    """Which of KINDS this model and these keys allow, the default first."""
    if not hasattr(model, 'rollout'):
        if not hasattr(model, 'act'):
            sys.exit('the model has no .rollout and no .act')
        if not hasattr(file_of(model), 'SIMULATOR') and not meta.get('env'):
            return ['actions.png']
        if getattr(model.cfg, 'tasks', ()) and hasattr(simulator(meta), 'askable'):
            return ['sentences.gif', 'actions.png']
        return ['episode.gif'] if hasattr(model, 'plans') else ['side.gif'] + ['actions.png'] * bool(reads)
    if 'state' in reads:
        looks = hasattr(simulator(meta), 'draw')
        return ['curves.png'] if not looks else ['arms.gif'] if versus else ['arms.gif', 'curves.png']
    if vae and 'latent' not in reads:
        sys.exit(f'--vae={vae}: this model does not dream latents, so there is nothing to decode')
    if not {'video', 'latent'} & set(reads):
        sys.exit(f'this model dreams {", ".join(reads)}, and no picture of that is known here')
    return ['futures.gif'] if futures else ['strips.gif', 'film.png']


def choose(store, n, seed):
    """Ids of one random window in each of n random episodes."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(store))
    firsts = np.unique(store.locate(shuffled)[0], return_index=True)[1]
    if len(firsts) < n:
        print(f'{len(firsts)} of {n} clips: of {len(store.episodes)} episodes in {store.folder}/{store.split}'
              ' only so many are long enough; a smaller --length may find more', file=sys.stderr)
    return shuffled[rng.permutation(firsts)[:n]]


if __name__ == '__main__':
    config, changed = configure(globals(), owners=samplers)
    told = {key: config[key] for key in changed}
    wrong = [f'{key} = {config[key]}: want {low} to {high}' for key, (low, high) in LIMITS.items()
             if not low <= config[key] <= high]
    if wrong or not ckpt:
        sys.exit('; '.join(wrong) or 'which checkpoint? --ckpt=OUT_DIR of a run')

    # which model, which data, which picture
    over = {key: value for key, value in told.items() if key not in globals()}     # not ours: the model's
    model, run = checkpoint.load(ckpt, ema, which, device, **over)
    M, step = contract.load(run['model']), os.path.normpath(checkpoint.find(ckpt, which))
    dataset = dataset or run['config']['dataset']
    folder = os.path.join(data_dir or run['config']['data_dir'], dataset) if dataset else ''
    contract.meet(model, M, folder)
    reads, meta = M.windows(model.cfg), read_meta(folder) if folder else {}
    kinds = {os.path.splitext(kind)[1]: kind for kind in possible(model, reads, meta, versus, futures)}
    ending = os.path.splitext(out)[1] if out else next(iter(kinds))
    out = out or os.path.join(os.path.dirname(step), 'samples', checkpoint.step_name(run['step']) + ending)
    check_out(out, tuple(kinds))
    clips, frames, takes = KINDS[kinds[ending]]
    for key in told:
        if key not in takes.split() and any(key in other.split() for *_, other in KINDS.values()):
            sys.exit(f'--{key}={told[key]} means nothing to {kinds[ending]}, which takes {takes}')
    K, kind = length or frames, kinds[ending].partition('.')[0]

    if kind == 'sentences':
        world_file = simulator(meta)
        best = draw_env.sentences(out, model, world_file, world_file.SEED + seed, length, fps)
        sys.exit(print(f'{out}: there at the end, after {sum(best.values()):.0f} of {len(best)} sentences'))
    if kind in ('episode', 'side'):                                  # no recorded clips are needed
        world_file = simulator_of(M, folder)
        name = env or next(iter(world_file.SUITES.values()))[0]
        world_file.check_name(name)
    if kind == 'side':
        models = [(os.path.basename(os.path.normpath(ckpt)), model)]
        if versus:
            other, its = checkpoint.load(versus, ema, which, device)
            strange = sorted({*contract.load(its['model']).windows(other.cfg)} - reads.keys() - {'action'})
            if strange and its['config']['dataset'] != run['config']['dataset']:
                sys.exit(f'--versus={versus} sees {strange[0]}, of other data; give a run on {dataset}')
            models.append((os.path.basename(os.path.normpath(versus)), other))
        best = draw_env.side(out, models, world_file, name, world_file.SEED + seed, length, fps)
        sys.exit(print(f'{out}: best reward {" and ".join(f"{reward:.2f}" for reward in best)}'))
    if kind == 'episode':
        won, steps = draw_env.episode(out, model, world_file, name, seed, length, fps, scale)
        sys.exit(print(f'{out}: {name}, {"won" if won else "not won"} in {steps} steps'))

    # which clips; then draw/ asks the model and draws
    if kind == 'actions':
        windows = reads | {'action': range(1)}
    else:
        key, k = 'state' if 'state' in reads else 'video', getattr(model.cfg, 'frame_skip', 1)
        H = n_context or getattr(model.cfg, 'n_context', max(1, len(reads.get('latent', reads.get(key))) - 1))
        if not length and not futures:                               # as long as the episodes are, at most
            spans = Store(folder, split, {key: range(1)}).episodes
            K = max(1, min(K, (int((spans[:, 1] - spans[:, 0]).max()) - 1) // k + 1 - H))
        T = H + (1 if futures else K)                                # a command held down needs no truth
        windows = {key: range(0, T * k, k), 'action': range((T - 1) * k)}
        if 'latent' in reads:
            windows['latent'] = windows['video']
    store = Store(folder, split, windows, hint='length, n_context',
                  **(contract.edges(M, model.cfg) if kind == 'actions' else {}))
    fits(model.cfg, store)
    ids = choose(store, n_clips or min(clips, len(store.episodes)), seed)
    if kind == 'actions':
        actions(out, model, store, ids, K, seed)
        sys.exit(print(f'{out}: what was done, and what the policy wants'))
    where = next(model.parameters()).device
    clips = cut(store, ids, H, k, where)
    if 'latent' in reads:
        model = Decoded(model, codec_of(meta, folder, vae, where))
    more = {key: config[key] for key in takes.split() if key in ('stride', 'futures', 'fps', 'scale')}
    more |= {'seed': seed} if key == 'video' else {'chunk': told.get('chunk', 1)}    # 1: exact sliding window
    more |= {'length': K} if futures else {}
    if versus:
        other, its = checkpoint.load(versus, ema, which, device)
        if key not in contract.load(its['model']).windows(other.cfg):
            sys.exit(f'--versus={versus} is a run of {its["model"]}, which knows no {key}')
        fits(other.cfg, store)
        names = [os.path.basename(os.path.normpath(path)) for path in (versus, ckpt)]
        more |= {'versus': [other], 'names': names}
    getattr(states if key == 'state' else video, kind)(out, model, *clips, meta, **more)
    print(f'{out}: {len(ids)} clips, {H} true frames, {K} dreamed')
