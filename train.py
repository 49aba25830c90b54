"""
Trains every model of this repository. Reads from top to bottom; nothing happens elsewhere.

    python train.py config/minihack_wm_cpu.py                          one process, CPU or one GPU
    python train.py config/minihack_wm_cpu.py --lr=1e-3 --seed=2       any key of any layer by flag; --help lists them
    torchrun --standalone --nproc_per_node=8 train.py config/rt1_b2.py     all GPUs of one machine
    python train.py config/minihack_wm_cpu.py --resume=True            go on after a stop, a crash, a kill

Keys belong either to this file (below) or to the model's Config; config files and flags set both (configurator.py).
One optimizer step uses batch_size samples: micro_batch per GPU and pass x accumulation x GPUs. Batch and noise of a
step are pure functions of (seed, step), so a resumed run does, to the bit on a CPU, what an unbroken one would have.
Ctrl-C or SIGTERM save at the next step and exit 0. A loss that is not finite stops the run and names its samples.
"""
import importlib
import json
import math
import os
import signal
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from tqdm import tqdm

import checkpoint
from configurator import configure
from data.loader import Prefetch, Store
from logger import make_logger

# what
model = 'nanowm'              # a file of this folder that has Config and Model
dataset = ''                  # a folder of data_dir; its meta.json fills the model's data facts
data_dir = 'data'             # where the data folders are
out_dir = 'out/run'           # checkpoints and logs.json.txt
resume = False                # go on from out_dir's latest checkpoint
seed = 1                      # of weights, batches and noise
# batch
batch_size = 64               # samples per optimizer step, all GPUs together
micro_batch = 0               # samples per GPU and pass; 0 = batch_size / GPUs, more passes when smaller
data_on_device = 'auto'       # True | False; auto = on CUDA, if the training data fit in a tenth of its memory
max_steps = 100_000           # optimizer steps
# optimizer
lr = 1e-4                     # peak learning rate
lr_schedule = 'constant'      # constant | cosine (to min_lr)
warmup_steps = 0              # linear from 0 to lr
lr_decay_steps = 0            # length of the cosine; 0 = max_steps
min_lr = 0.0                  # where the cosine ends
weight_decay = 0.01           # of AdamW
betas = (0.9, 0.999)          # of AdamW
grad_clip = 1.0               # largest gradient norm; 0 = off
ema_decay = 0.0               # averaged weights: min(ema_decay, (1+n)/(10+n)) in step n = 0, 1, ...; 0 = none
ema_power = 0.0               # > 0: the power schedule min(ema_decay, 1 - (1+n)^-ema_power) instead
# log, validate, save
log_every = 10                # steps between step lines
log = ''                      # '' | tensorboard; logs.json.txt is always written
val_every = 1000              # steps between validation losses; 0 = only at the end
val_batches = 8               # fixed batches of the val split
eval_every = 0                # steps between runs of the model's first evaluator (eval.py); 0 = never
save_every = 1000             # steps between checkpoints; 0 = only at the end
keep = 3                      # newest checkpoints to keep; 0 = all
keep_every = 0                # also keep every keep_every-th step
best_metric = 'val/loss'      # what `best` follows
best_mode = 'min'             # min | max
# system
device = 'auto'               # auto = cuda if there is one, else cpu
dtype = 'auto'                # float32 | bfloat16 (autocast); auto = bfloat16 on cuda, else float32
compile = 'auto'              # True | False; auto = True on cuda
deterministic = False         # bitwise the same on CUDA too, slower
config = configure(globals())

# ---- who are we ----
rank, world, local = (int(os.environ.get(key, default)) for key, default in    # torchrun sets them
                      (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK', 0)))
ddp, master = 'RANK' in os.environ, rank == 0
why = ' (as set)'
if device == 'auto':
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    why = '' if device == 'cuda' else ' (no CUDA device here)'
on_cuda = device.startswith('cuda')
if device == 'cuda':
    device = f'cuda:{local}'
if dtype == 'auto':
    dtype = 'bfloat16' if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else 'float32'
if compile == 'auto':
    compile = on_cuda
if on_cuda:
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
if deterministic:
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True)
if ddp:                                                  # gloo beside nccl: stop signals travel on the host
    dist.init_process_group('cpu:gloo,cuda:nccl' if on_cuda else 'gloo')


def stop_if(wrong, problem):
    """User mistakes: one line on rank 0, no traceback."""
    if wrong:
        if master: print(problem, file=sys.stderr)
        sys.exit(1)


def say(line):
    if master:
        tqdm.write(line, file=sys.stdout)                # goes around the bar
        sys.stdout.flush()


for key, allowed in (('dtype', ('float32', 'bfloat16')), ('compile', (True, False)), ('best_mode', ('min', 'max')),
                     ('data_on_device', ('auto', True, False)), ('lr_schedule', ('constant', 'cosine')),
                     ('log', ('', 'tensorboard'))):
    stop_if(globals()[key] not in allowed, f'{key} = {globals()[key]!r}: choose one of {allowed}')
for key, least in (('batch_size', 1), ('log_every', 1), ('val_batches', 1), ('micro_batch', 0), ('seed', 0)):
    stop_if(globals()[key] < least, f'{key} = {globals()[key]}: must be at least {least}')
micro_batch = micro_batch or max(1, batch_size // world)
accum = batch_size // (micro_batch * world)
stop_if(batch_size != micro_batch * accum * world,
        f'batch_size = {batch_size} is not micro_batch {micro_batch} x accumulation x {world} processes; change one')
stop_if(not dataset, f"dataset = '': name a folder of {data_dir}/, or give a config: python train.py config/...")

# ---- data ----
M = importlib.import_module(model)
stop_if(M.PAD, f'{model}.PAD = True: windows that leave the episode are not in data/loader.py yet')
cfg = M.Config(**{f.name: config[f.name] for f in fields(M.Config)})
folder = os.path.join(data_dir, dataset)
train_data, val_data = (Store(folder, split, M.windows(cfg)) for split in ('train', 'val'))
data_sha = checkpoint.sha256(os.path.join(folder, 'meta.json'))
if data_on_device == 'auto':
    data_on_device = on_cuda and train_data.nbytes < torch.cuda.get_device_properties(device).total_memory / 10
if data_on_device: train_data.to(device)

# ---- model ----
torch.manual_seed(seed)
try:
    raw = M.Model(cfg)
except AssertionError as error:                          # an impossible Config: the assert says which and why
    stop_if(True, f'{model}.Config: {error}')
stop_if(micro_batch % getattr(cfg, 'members', 1), f'{micro_batch} samples per GPU and pass are no multiple of members')
for key, stats in train_data.meta.get('stats', {}).items():
    for name, values in stats.items():                   # e.g. stats['action']['mean'] -> the buffer action_mean
        if (buffer := getattr(raw, f'{key}_{name}', None)) is not None:
            stop_if(len(values) != len(buffer), f'{folder}/meta.json has {len(values)} numbers of {name} for {key}, '
                    f'{model} wants {len(buffer)}; make the data again')
            buffer.copy_(torch.tensor(values))
raw.to(device)
optimizer = raw.configure_optimizers(lr, weight_decay, betas)
names, params = zip(*((name, p) for name, p in raw.named_parameters() if p.requires_grad))
ema = [p.detach().clone() for p in params] if ema_decay else None

if master: held = checkpoint.lock(out_dir)               # until we end, however we end
start, best = 0, None
if checkpoint.pointer(out_dir, 'latest'):
    stop_if(not resume, f'{out_dir} already holds a run: --resume=True goes on with it, --out_dir=... starts anew')
    source = checkpoint.find(out_dir)
    saved = checkpoint.read(source, 'meta.json')
    ours, keys = json.loads(json.dumps([asdict(cfg), config]))           # tuples become lists, as in meta.json
    differ = [f'{k} = {v!r}, now {ours.get(k)!r}' for k, v in saved['model_config'].items() if ours.get(k) != v]
    stop_if(saved['model'] != model, f'{source} holds a {saved["model"]}, not a {model}; choose another --out_dir')
    stop_if(differ, f'{source} was trained with {"; ".join(differ)}: set it back or choose another --out_dir')
    stop_if(saved['data_sha'] != data_sha,
            f'{source} was trained on other data than {folder}; choose another --out_dir')
    checkpoint.fill(raw, checkpoint.read(source, 'model.safetensors'), source)
    if ema:
        stop_if(not saved['config']['ema_decay'], f'{source} has no averaged weights: resume with --ema_decay=0')
        averaged = checkpoint.read(source, 'ema.safetensors')
        ema = [averaged[name].to(device) for name in names]
    state = checkpoint.read(source, 'state.pt')
    state['param_groups'] = optimizer.state_dict()['param_groups']       # weight_decay and betas: as set now
    optimizer.load_state_dict(state)
    start, best = saved['step'], saved['best']
    now = {k: v for k, v in keys.items() if k not in ('resume', 'out_dir') and saved['config'].get(k, v) != v}
    if now: say(f'other than before the resume: {", ".join(f"{k} = {v!r}" for k, v in now.items())}')
elif resume:
    say(f'nothing to resume in {out_dir}: starting at step 0')
if compile: raw.compile(dynamic=False)                   # in place: torch.compile(raw) would put _orig_mod. into keys
net = DDP(raw, device_ids=[local] if on_cuda else None) if ddp else raw
autocast = torch.autocast(device.split(':')[0], torch.bfloat16) if dtype == 'bfloat16' else nullcontext()


# ---- the small functions of the loop ----
def reseed(*key):
    """Noise and dropout are a pure function of the key, e.g. (seed, step, rank, pass)."""
    number = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
    torch.default_generator.manual_seed(number)          # torch.manual_seed is 90 times slower: it visits every backend
    if on_cuda: torch.cuda.manual_seed(number)


def passes(batch):
    """A rank's rows of a batch, dealt out to the accumulation passes."""
    return [{k: v[i::accum] if v.ndim else v for k, v in batch.items()} for i in range(accum)]


def lr_at(step):
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if lr_schedule == 'constant':
        return lr
    progress = min(1.0, (step - warmup_steps) / max(1, (lr_decay_steps or max_steps) - warmup_steps))
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def update_ema(n):
    decay = min(ema_decay, 1 - (1 + n) ** -ema_power if ema_power else (1 + n) / (10 + n))
    torch._foreach_lerp_(ema, params, 1 - decay)


@contextmanager
def evaluating():
    """Eval mode, with the averaged weights if there are any."""
    backup = [p.detach().clone() for p in params] if ema else []
    raw.eval()
    with torch.no_grad():
        if ema: torch._foreach_copy_(params, ema)
        try: yield
        finally:
            if ema: torch._foreach_copy_(params, backup)
            raw.train()


def average(*values):
    """Mean of each scalar over the ranks, on the host."""
    total = torch.tensor(values, dtype=torch.float64)
    if ddp: dist.all_reduce(total)
    return (total / world).tolist()


def val_loss():
    """Mean loss over fixed val batches; the noise is fixed too, for a given number of ranks."""
    total = 0.0
    with evaluating(), autocast:
        for i in range(val_batches):
            batch = val_data.batch(i, batch_size, 0, rank, world)
            reseed(0, i, rank)
            for rows in passes({k: v.to(device) for k, v in batch.items()}): total += raw(rows)['loss'].item() / accum
    return average(total / val_batches)[0]


def evaluate():
    """The model's first evaluator of eval.py, on every rank its share of the clips."""
    from eval import EVALUATORS
    with evaluating(), autocast:
        return EVALUATORS[M.EVAL[0]](raw, folder, rank=rank, world=world)


def save(step, metrics, is_best):
    weights = raw.state_dict()
    meta = dict(step=step, model=model, model_config=asdict(cfg), config=config, metrics=metrics, best=best,
                params=n_params, git=git, torch=torch.__version__, data_sha=data_sha)
    averaged = weights | dict(zip(names, ema)) if ema else None
    checkpoint.save(out_dir, step, weights, averaged, optimizer.state_dict(), meta, is_best, keep, keep_every)


def check_finite():
    """Stop if a loss or gradient norm was not finite. Reading `bad` makes the host wait, so not in every step."""
    if (where := int(bad)) >= 0:
        ids = train_data.ids(where, batch_size, seed, rank, world).tolist()
        sys.exit(f'loss or gradient is not finite at step {where}, rank {rank}, sample ids {ids}; nothing was saved '
                 'since. Look at them with Store.windows_at(ids), or try a smaller lr, or grad_clip = 1')


asked_to_stop = []                                       # the handler only notes it; the loop reacts between steps
for sig in (signal.SIGTERM, signal.SIGINT):
    signal.signal(sig, lambda *_: asked_to_stop.append(True))


def stopping():
    """Has any rank been asked to stop? All must agree, or the others would wait for ever in the next all_reduce."""
    return average(float(bool(asked_to_stop)))[0] > 0 if ddp else bool(asked_to_stop)


# ---- what is about to happen ----
PEAK = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12, 'L40S': 362e12, 'RTX 4090': 165e12}   # dense bf16, data sheets
peak = next((value for name, value in PEAK.items() if on_cuda and name in torch.cuda.get_device_name()), 0)
n_params, git = sum(p.numel() for p in raw.parameters()), checkpoint.git_hash()
say(f'{model}: {n_params:,} parameters, {raw.flops_per_sample() / 1e9:.3g} GFLOP per sample')
say(f'{batch_size} samples/step = {micro_batch} x {accum} passes x {world} processes; {len(train_data):,} in {folder}')
say(f'{torch.cuda.get_device_name() if on_cuda else device}{why}, {torch.get_num_threads()} threads, {dtype}'
    f'{", compiled" if compile else ""}; out_dir {out_dir}; git {git or "none"}')
say('set: ' + ', '.join(f'{key} = {config[key]!r}' for key in configure.changed))
if start >= max_steps: say(f'{out_dir} has reached step {start} of {max_steps}: nothing to do')

# ---- the loop ----
logger = make_logger(log, out_dir, os.path.basename(out_dir), config, step=start or None) if master else None
batches = Prefetch(lambda step: train_data.batch(step, batch_size, seed, rank, world), start, device)
bar = tqdm(total=max_steps, initial=start, disable=not (master and sys.stderr.isatty()))
step, metrics, waited, clock, clock_step = start, {}, 0.0, time.perf_counter(), start
bad = torch.full((), -1, device=device)                  # first step that was not finite, see check_finite
raw.train()
while start < max_steps:
    last, stop, paused = step == max_steps, stopping(), time.perf_counter()
    fresh = step > start or start == 0                   # not at the step we resumed at: it was done before the save

    validate, store, judge = (fresh and (last or every > 0 and step % every == 0)
                              for every in (val_every, save_every, eval_every))
    judge = judge and eval_every > 0 and step > 0        # the other two happen at the end in any case
    if validate or store or judge or stop: check_finite()

    # validate, evaluate
    if validate:
        metrics = {'val/loss': val_loss()}
        say(f'step {step}/{max_steps} | val loss {metrics["val/loss"]:.4f}')
    if judge:
        metrics |= {f'eval/{k}': v for k, v in evaluate().items() if isinstance(v, float)}
        say(f'step {step}/{max_steps} | ' + ' | '.join(f'{k} {v:.4g}' for k, v in metrics.items()))
    if metrics and master: logger.log(metrics, step)

    # save
    value, is_best = metrics.get(best_metric), False
    if value is not None and step > 0:
        is_best = math.isfinite(value) and (best is None or (value < best if best_mode == 'min' else value > best))
        best = value if is_best else best
    if (store or is_best or (stop and fresh)) and step > 0 and master: save(step, metrics, is_best)
    if last or stop:
        say(f'stopped at step {step}; --resume=True goes on' if stop and not last else f'done: {out_dir}')
        break
    metrics = {}
    clock += time.perf_counter() - paused                # none of this was the step's time

    # one optimizer step
    now = time.perf_counter()
    batch = batches.next() | {'step': torch.tensor(step)}
    waited += time.perf_counter() - now
    for group in optimizer.param_groups:
        group['lr'] = lr_at(step) * group.get('lr_scale', 1.0)
    logs = {}
    for i, rows in enumerate(passes(batch)):
        reseed(seed, step, rank, i)
        with net.no_sync() if ddp and i < accum - 1 else nullcontext():    # covers forward too: DDP decides there
            with autocast: out = net(rows)
            (out['loss'] / accum).backward()
        for k, v in out.items(): logs[k] = logs.get(k, 0.0) + v.detach().float() / accum
    clipped = raw.clip_grad(grad_clip) if hasattr(raw, 'clip_grad') else \
        {'norm': torch.nn.utils.clip_grad_norm_(params, grad_clip or math.inf)}
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if ema: update_ema(step)
    fine = torch.isfinite(torch.stack([logs['loss'], *(v.float() for v in clipped.values())])).all()
    bad = torch.where((bad < 0) & ~fine, step, bad)
    step += 1
    bar.update()

    # log
    if step % log_every == 0 or step in (start + 1, max_steps):
        check_finite()
        logs |= clipped
        logs = dict(zip(logs, average(*(float(v) for v in logs.values()))))
        took = (time.perf_counter() - clock) / (step - clock_step)
        mfu = batch_size * raw.flops_per_sample() / (took * world * peak) if peak else 0
        shown = ' | '.join(f'{k} {v:.4f}' for k, v in logs.items())
        say(f'step {step}/{max_steps} | {shown} | lr {lr_at(step - 1):.1e} | {took * 1e3:.0f} ms | '
            f'{batch_size / took:.3g} samples/s{f" | mfu {mfu:.0%}" if mfu else ""} | '
            f'eta {(max_steps - step) * took / 3600:.2f} h')
        logs |= {'lr': lr_at(step - 1), 'ms': took * 1e3,
                 'waited': waited / (step - clock_step) / took}                 # share of a step spent waiting for data
        if master: logger.log({f'train/{k}': v for k, v in logs.items()}, step)
        waited, clock, clock_step = 0.0, time.perf_counter(), step

# ---- goodbye ----
batches.close()
bar.close()
if master: logger.close()
if ddp:
    dist.barrier()                                       # nobody leaves while another still talks to it
    dist.destroy_process_group()
