"""
Trains every model of this repository. Reads from top to bottom; nothing happens elsewhere.

    python train.py config/minihack_wm_cpu.py                          one process, CPU or one GPU
    python train.py config/minihack_wm_cpu.py --lr=1e-3 --seed=2       any key by flag; --help lists them
    torchrun --standalone --nproc_per_node=8 train.py config/rt1_b2.py     all GPUs of one machine
    python train.py config/minihack_wm_cpu.py --resume=True            go on after a stop, a crash, a kill
    python train.py config/my.py --init_from=out/other                 a new run from the weights of another

Keys belong either to this file (below) or to the model's Config; config files and flags set both
(configurator.py). One optimizer step uses batch_size samples: micro_batch per GPU and pass x passes x GPUs.
Batch and noise of a step are pure functions of (seed, step), so a resumed run does, to the bit on a CPU, what
an unbroken one would have. A model with a `refresh` makes its own data, between steps. Ctrl-C, SIGTERM,
SIGHUP and a closed pipe save at the next step and exit 0; during validation they do not wait for its end;
with fsdp they do, because all ranks must come to each layer. A loss that is not finite stops the run and
names its samples.
"""
from configurator import configure, polite_exit

polite_exit()                                            # the imports below take seconds

import importlib
import json
import math
import os
import signal
import sys
import time
import uuid
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, replace

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from tqdm import tqdm

import checkpoint
import contract
from data.loader import Prefetch, Store, identity
from logger import TRACKERS, make_logger, peak_of

# what
model = 'nanowm'              # a file of this folder that has Config and Model
dataset = ''  # a folder of data_dir; its meta.json fills the model's data facts; '' = the model makes its own
data_dir = 'data'             # where the data folders are
verify = False                # recompute the sha256 of the data files before step 0
out_dir = 'out/run'           # checkpoints and logs.json.txt
resume = False                # go on from out_dir's latest checkpoint
init_from = ''  # weights to start from: another run, or a published checkpoint; '' = random ones
keep_stats = False            # with init_from: normalise by its statistics, not by those of the new data
seed = 1                      # of weights, batches and noise
# batch
batch_size = 64               # samples per optimizer step, all GPUs together
micro_batch = 0               # samples per GPU and pass; 0 = batch_size / GPUs, more passes when smaller
data_on_device = 'auto'  # True | False; auto = on CUDA, if the training data fit in a tenth of its memory
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
log = ''                      # '' | tensorboard | wandb | swanlab; logs.json.txt is always written
val_every = 1000              # steps between validation losses; 0 = only at the end
val_batches = 8               # fixed batches of the val split
eval_every = 0                # steps between runs of the protocol that eval.py would choose; 0 = never
save_every = 1000             # steps between checkpoints; 0 = only at the end
keep = 3                      # newest checkpoints to keep; 0 = all
keep_every = 0                # also keep every keep_every-th step; 0 = none of them
best_metric = 'val/loss'      # what `best` follows: val/loss, eval/<name> with eval_every, refresh/<name>
best_mode = 'min'             # min | max
# system
device = 'auto'               # auto = cuda if there is one, else cpu
dtype = 'auto'                # float32 | bfloat16 (autocast); auto = bfloat16 on cuda, else float32
compile = 'auto'              # True | False; auto = True on cuda
deterministic = False         # bitwise the same on CUDA too, slower
fsdp = False  # each GPU keeps a part of weights, gradients and optimizer; for what has no room on one
config, changed = configure(globals(), contract.owners)

# ---- who are we ----
rank, world, local = (int(os.environ.get(key, default)) for key, default in    # torchrun sets them
                      (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK', 0)))
ddp, master = 'RANK' in os.environ, rank == 0
parent = os.getppid()  # torchrun; if it is killed, nobody else would stop us
asked_to_stop = []                                       # reasons; the loop reacts between steps


def stop_if(wrong, problem):
    """User mistakes: one line on rank 0, no traceback."""
    if wrong:
        if master:
            print(problem, file=sys.stderr)
        sys.exit(1)


def say(line):
    if not master:
        return
    try:
        tqdm.write(line, file=sys.stdout)                # goes around the bar
        sys.stdout.flush()
    except OSError:  # `train.py | head` has read enough, or the terminal is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        asked_to_stop.append('nobody reads any more')


# ---- are the keys possible ----
for key, allowed in (('dtype', ('auto', 'float32', 'bfloat16')), ('compile', ('auto', True, False)),
                     ('data_on_device', ('auto', True, False)), ('lr_schedule', ('constant', 'cosine')),
                     ('best_mode', ('min', 'max')), ('log', ('', *TRACKERS))):
    stop_if(config[key] not in allowed, f'{key} = {config[key]!r}: choose one of {allowed}')
for key, low, high in (('seed', 0, 2**63 - 1), ('batch_size', 1, 10**7), ('micro_batch', 0, 10**7),
                       ('max_steps', 0, 10**12), ('lr', 0, 1e38), ('warmup_steps', 0, 10**12),
                       ('lr_decay_steps', 0, 10**12), ('min_lr', 0, 1e38), ('weight_decay', 0, 1e38),
                       ('grad_clip', 0, math.inf), ('ema_decay', 0, 1), ('ema_power', 0, 1e38),
                       ('log_every', 1, 10**12), ('val_every', 0, 10**12), ('val_batches', 1, 10**9),
                       ('eval_every', 0, 10**12), ('save_every', 0, 10**12), ('keep', 0, 10**9),
                       ('keep_every', 0, 10**12)):
    stop_if(not low <= config[key] <= high, f'{key} = {config[key]}: must lie in {low}..{high:.4g}')
stop_if(len(betas) != 2 or not all(0 <= beta < 1 for beta in betas),
        f'betas = {betas}: want two numbers in [0, 1)')
micro_batch = micro_batch or max(1, batch_size // world)
accum = batch_size // (micro_batch * world)
stop_if(batch_size != micro_batch * accum * world,
        f'batch_size = {batch_size} is not micro_batch {micro_batch} x accumulation x {world} processes; '
        'change one')

# ---- device ----
reason = ''                                              # why this device, where it was not our choice
if device != 'auto':
    reason = ' (as set)'
elif not torch.cuda.is_available():
    reason = ' (no CUDA device here)'
device = checkpoint.pick_device(device, local)
on_cuda = device.startswith('cuda')
if dtype == 'auto':
    dtype = 'bfloat16' if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else 'float32'
if compile == 'auto':
    compile = on_cuda
if on_cuda:
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
torch.set_flush_denormal(True)  # numbers below 1e-38 are 0: a CPU stumbles over them (dev/LOG.md: x 7 a step)
if deterministic:
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True)
if ddp:                                                  # gloo beside nccl: stop signals travel on the host
    dist.init_process_group('cpu:gloo,cuda:nccl' if on_cuda else 'gloo')

# ---- data ----
M = contract.load(model)
stop_if(fsdp and not ddp, 'fsdp = True: there is nobody to share with; start it with torchrun')
stop_if(fsdp and (not hasattr(M, 'ENTERED') or hasattr(M, 'refresh') or hasattr(M.Model, 'clip_grad')),
        f'fsdp = True: {model}.py cannot be shared: no ENTERED there, or a refresh, or clip_grad '
        '(contract.py); choose False')
values = {field.name: config[field.name] for field in fields(M.Config)}
cfg = contract.attempt(M, lambda values: M.Config(**values), values)
windows = contract.windows_of(M, cfg)
refresh_every = cfg.refresh_every if hasattr(M, 'refresh') else 0    # > 0: the model makes data of its own
stop_if(not dataset and not refresh_every,
        f"dataset = '': name a folder of {data_dir}/, or give a config: python train.py config/...")
given, _, number = best_metric.partition('/')            # by whom, and which of the numbers
stop_if(given not in ('val', 'eval', 'refresh') or not number or (given == 'val' and number != 'loss')
        or (given == 'eval' and not eval_every) or (given == 'refresh' and not refresh_every),
        f'best_metric = {best_metric!r}: choose val/loss, or with --eval_every=N a number that the model\'s '
        'protocol gives, as eval/<name>, or one that its refresh gives, as refresh/<name>')
folder = os.path.join(data_dir, dataset) if dataset else None
train_data = Store(folder, 'train', windows, **contract.edges(M, cfg),
                   capacity=getattr(cfg, 'buffer_capacity', 0) if refresh_every else 0)
val_data = Store(folder, 'val', windows, **contract.edges(M, cfg)) if dataset else None
data_sha = identity(train_data.meta) if dataset else ''
stop_if(0 < train_data.capacity <= len(train_data),
        f'buffer_capacity = {train_data.capacity}: the {len(train_data):,} windows of {folder} fill it '
        'already')
n_fixed = len(train_data)                                # those of the folder
if verify:
    train_data.verify()
stop_if(data_on_device is True and refresh_every,
        'data_on_device = True: episodes that are made during the training stay on the host; choose False')
if data_on_device == 'auto' and not refresh_every:
    room = torch.cuda.get_device_properties(device).total_memory / 10 if on_cuda else 0
    data_on_device = train_data.nbytes < room
if data_on_device is True:
    train_data.to(device)
if eval_every:                                           # what cannot be judged later is said now
    stop_if(not M.EVAL, f'eval_every = {eval_every}: {model}.EVAL names no protocol; --eval_every=0')
    name = contract.protocol_for(M, folder)
    protocol, common = (importlib.import_module(f'protocols.{file}') for file in (name, 'common'))
    judging = protocol.Keys(**getattr(protocol, 'QUICK', {}))
    try:
        if not common.judged_on(protocol, folder, cfg, judging, M) and name == 'env':
            protocol.simulator_of(M, folder)             # in which it will be judged
    except SystemExit as problem:
        stop_if(True, f'eval_every = {eval_every}, the {name} protocol: {problem.code}; or --eval_every=0')

# ---- model ----
torch.manual_seed(seed)
going_on = os.path.exists(os.path.join(out_dir, 'latest')) and checkpoint.pointer(out_dir, 'latest')
# raw is ours; net, below, is what DDP makes of it. Files that a run once started from may be gone
raw = contract.build(M, replace(cfg, **contract.initial(M)) if going_on else cfg,
                     empty=bool(going_on or init_from and not checkpoint.is_vlm(M, init_from)))
members = getattr(cfg, 'members', 1)
stop_if(micro_batch % members,
        f'{micro_batch} samples per GPU and pass are no multiple of members = {members}')
contract.fill_statistics(raw, M, windows, train_data.meta, folder)
if init_from and not going_on:
    of_the_data = contract.statistics(raw, train_data.meta)
    checkpoint.start_from(raw, M, init_from, keep=() if keep_stats else of_the_data)
if not going_on:
    contract.suited(raw, M, train_data.meta, folder)

# ---- the folder of the run; go on from its latest checkpoint ----
locked = ''
if master:
    try:
        held = checkpoint.lock(out_dir)                  # until we end, however we end
    except SystemExit as problem:
        locked = problem.code
if ddp:                                                  # nobody may wait for ever for a rank that gave up
    verdict = [locked]
    dist.broadcast_object_list(verdict)
    locked, = verdict
stop_if(locked, locked)
start, best, judged = 0, None, True                      # judged: step `start` has been validated already
refreshed, made = -1, {}                                 # the step of the last refresh, and what it returned
run_id = uuid.uuid4().hex[:16]                           # by which wandb and swanlab know this run again
if going_on:
    stop_if(not resume,
            f'{out_dir} already holds a run: --resume=True goes on with it, --out_dir=... starts anew')
    source = checkpoint.find(out_dir)
    saved = checkpoint.read_meta(source)
    ours, keys = json.loads(json.dumps([asdict(cfg), config]))       # tuples become lists, as in meta.json
    stop_if(saved['model'] != model,
            f'{source} holds a {saved["model"]}, not a {model}; choose another --out_dir')
    free = {*contract.initial(M)} | {*(() if refresh_every else contract.sampling(M))}
    differ = [f'{key} = {value!r}, now {ours.get(key)!r}' for key, value in saved['model_config'].items()
              if ours.get(key) != value and key not in free]
    stop_if(differ, f'{source} was trained with {"; ".join(differ)}: set it back or choose another --out_dir')
    stop_if(saved['data_sha'] != data_sha,
            f'{source} was trained on other data than {folder}; choose another --out_dir')
    stop_if(ema_decay and not saved['config'].get('ema_decay'),
            f'{source} has no averaged weights: resume with --ema_decay=0')
    if refresh_every:
        train_data.restore(checkpoint.read(source, 'store.safetensors'), f'{source}/store.safetensors')
        refreshed, made = saved.get('refreshed', -1), saved.get('made', {})
    start, best, judged = saved['step'], saved.get('best'), saved.get('judged', True)
    run_id = saved.get('run_id', run_id)                 # with any tracker: another may be chosen, or none
    if any(saved['config'].get(key) != config[key] for key in ('best_metric', 'best_mode')):
        best = None                                      # a loss is no threshold for a score
    now = [f'{key} = {value!r}' for key, value in keys.items()
           if key not in ('resume', 'out_dir') and saved['config'].get(key, value) != value]
    if now:
        say(f'other than before the resume: {", ".join(now)}')
    if saved.get('model_sha') != checkpoint.sha256(M.__file__):
        say(f'note: {model}.py has changed since {source} was saved')
else:
    there = checkpoint.steps(out_dir)
    stop_if(there, f'{out_dir} holds {", ".join(there[-3:])} but no file `latest`: '
            'write the name of the one to go on from into it, or choose another --out_dir')
    if resume:
        say(f'nothing to resume in {out_dir}: starting at step 0')

# ---- weights in their place, and the optimizer ----
if going_on:
    checkpoint.fill(raw, checkpoint.read(source, 'model.safetensors'), source)
places = [x.untyped_storage().data_ptr() for x in raw.state_dict().values() if x.numel()]
stop_if(len({*places}) < len(places),
        f'{model}: two tensors share their memory, which cannot be saved; tie weights in forward instead')
if fsdp:  # every rank has built the same weights and keeps its part; a layer is whole only while it works
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    warnings.filterwarnings('ignore', '.*returned a view tensor')        # which nobody changes in place
    mesh = init_device_mesh('cuda' if on_cuda else 'cpu', (world,))
    layers = [layer for part in raw.modules() if isinstance(part, torch.nn.ModuleList) for layer in part]
    for part in (*layers, raw):
        if compile and part is not raw:                  # what gathers them lies between them
            part.compile(dynamic=False)
        # True: after validation the root, too, is in parts, as params and averages are
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        for entry in M.ENTERED:
            if hasattr(part, entry): register_fsdp_forward_method(part, entry)
    type(raw).__module__ = model                         # a new class, by which protocols find the file
    # all ranks play the same, so that all come to a layer equally often: a last bit may end a game elsewhere
    alone = raw.act

    def of_the_first(*args, **kw):
        actions = alone(*args, **kw).contiguous()
        dist.broadcast(actions, 0)
        return actions
    raw.act = of_the_first
    if compile:
        torch._dynamo.config.recompile_limit = 64        # layers of all kinds are compiled from few functions
else:
    raw.to(device)
optimizer = raw.configure_optimizers(lr, weight_decay, betas)
names, params = zip(*((name, p) for name, p in raw.named_parameters() if p.requires_grad))
averages = [p.detach().clone() for p in params] if ema_decay else []         # EMA, in the order of params
if going_on and averages:
    file = checkpoint.read(source, 'ema.safetensors')
    spoilt = [name for name, p in zip(names, params) if name not in file or file[name].shape != p.shape]
    stop_if(spoilt, f'{source}/ema.safetensors lacks {", ".join(spoilt[:3])}, or in another shape: '
            'it is damaged; take another checkpoint, or resume with --ema_decay=0')
    for name, x in zip(names, averages):
        x.copy_(checkpoint.part(file.pop(name), x))
if going_on:
    checkpoint.load_optimizer(raw, optimizer, checkpoint.read(source, 'state.pt'), source)
if compile and not fsdp:
    raw.compile(dynamic=False)  # in place: torch.compile(raw) would put _orig_mod. into keys
net = DDP(raw, device_ids=[local] if on_cuda else None) if ddp and not fsdp else raw
autocast = torch.autocast(device.split(':')[0], torch.bfloat16) if dtype == 'bfloat16' else nullcontext()


# ---- the small functions of the loop ----
def reseed(*key):
    """Noise and dropout are a pure function of the key, e.g. (seed, step, rank, pass)."""
    number = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
    # torch.manual_seed is 90 times slower: it visits every backend
    torch.default_generator.manual_seed(number)
    if on_cuda:
        torch.cuda.manual_seed(number)
    if device.startswith('mps'):
        torch.mps.manual_seed(number)


def passes(batch):
    """A rank's rows of a batch, dealt out to the accumulation passes."""
    return [{key: rows[i::accum] if rows.ndim else rows for key, rows in batch.items()} for i in range(accum)]


def lr_at(step):
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if lr_schedule == 'constant':
        return lr
    progress = min(1.0, (step - warmup_steps) / max(1, (lr_decay_steps or max_steps) - warmup_steps))
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def update_averages(n):
    decay = min(ema_decay, 1 - (1 + n) ** -ema_power if ema_power else (1 + n) / (10 + n))
    torch._foreach_lerp_(averages, params, 1 - decay)


@torch.no_grad()
def swap_averages():
    """The weights for their averages, or back; one at a time, because all at once may have no room."""
    for p, x in zip(params, averages):
        kept = p.clone()
        p.copy_(x)
        x.copy_(kept)


def average(*values):
    """Mean of each scalar over the ranks, on the host."""
    total = torch.tensor(values, dtype=torch.float64)
    if ddp:
        dist.all_reduce(total)
    return (total / world).tolist()


def hours_left(took):
    """By the steps that are left, or by the progress that refresh reports, whichever is sooner."""
    left = (max_steps - step) * took
    if len(pace) > 1 and pace[-1][1] > pace[0][1]:
        (then, before), (now, done) = pace[0], pace[-1]
        left = min(left, (1 - done) * (now - then) / (done - before))
    return left / 3600


def val_loss():
    """Mean loss over fixed val batches; the noise is fixed too, for a given number of ranks."""
    total = 0.0
    for i in range(val_batches):
        batch = val_data.batch(i, batch_size, 0, rank, world)
        reseed(0, i, rank)
        for rows in passes({key: x.to(device) for key, x in batch.items()}):
            out = raw(rows)
            contract.check_output(M, out, grad=False)
            total += out['loss'].item() / accum
    return average(total / val_batches)[0]


@contextmanager
def as_judged():
    """In eval mode, with the averaged weights if there are any; then back."""
    raw.eval()
    swap_averages()
    try:
        with torch.no_grad(), autocast:
            yield
    finally:
        swap_averages()
        raw.train()


def measured(validate, evaluate):
    """
    {name: number}; None if a stop signal came meanwhile. The signal raises KeyboardInterrupt in here, and
    only in here: validation changes nothing that could be lost.
    """
    found = {}
    try:
        with as_judged():
            try:
                if not fsdp:                             # else the others would wait for it in the next layer
                    interruptible.append(True)
                    if asked_to_stop:
                        raise KeyboardInterrupt
                if validate:
                    found['val/loss'] = val_loss()
                if evaluate:
                    # fsdp: every rank plays all of it, so that all call the layers equally often
                    among = {} if fsdp else {'rank': rank, 'world': world}
                    result = protocol.evaluate(raw, folder, judging, **among)
                    numbers = {key: math.nan if value is None else value for key, value in result.items()
                               if value is None or isinstance(value, float)}         # JSON has no nan
                    found |= {f'eval/{key}': value for key, value in numbers.items()}
                average(0.0)                             # nobody trains on while another may be interrupted
                if fsdp:                                 # whether it is the best, all must agree
                    told = [found]
                    dist.broadcast_object_list(told)
                    found, = told
            finally:
                interruptible.clear()
    except BaseException as error:  # ours, or of a rank that lost the others to the signal
        if fsdp or not asked_to_stop and not (ddp and isinstance(error, RuntimeError)):
            raise
        if not asked_to_stop:
            say(f'a rank has left, or cannot judge: {str(error).splitlines()[0]}')
        found = None
    return found


def made_anew():
    """The model makes data with the weights of this step; all ranks then hold the same. -> {name: number}"""
    with as_judged():
        found = M.refresh(raw, train_data, step, seed, rank, world)
    stop_if(len(train_data) == 0,
            f'step {step}: {model}.refresh has kept no episode yet, so there is nothing to learn '
            'from; let it play more, or start from a --dataset')
    return {f'refresh/{key}': value for key, value in found.items()}


def whole(x):
    """With fsdp all ranks come, each with its part; the first has the tensor then, on the host."""
    if not hasattr(x, 'full_tensor'):
        return x
    x = x.full_tensor()
    return x.cpu() if master else None


def save(step, metrics, is_best):
    weights = {key: whole(x) for key, x in raw.state_dict().items()}
    meta = dict(step=step, model=model, model_config=asdict(cfg), config=config, metrics=metrics, best=best,
                judged=judged, params=n_params, git=git, torch=torch.__version__, data_sha=data_sha,
                model_sha=model_sha, run_id=run_id)
    if refresh_every:
        meta |= {'refreshed': refreshed, 'made': made}
    state = optimizer.state_dict() | {'params': checkpoint.named_parameters(raw, optimizer)}
    state['state'] = {i: {key: whole(x) for key, x in there.items()} for i, there in state['state'].items()}
    smoothed = weights | {name: whole(x) for name, x in zip(names, averages)} if averages else None
    if master:
        checkpoint.save(out_dir, step, weights, smoothed, state, meta, is_best, keep, keep_every,
                        store=train_data.state() if refresh_every else None)


def check_finite():
    """
    Stop if a loss or gradient norm was not finite. Reading `bad` makes the host wait, so not in every step.
    """
    first = [bad.tolist()]  # per rank: first bad step of its loss, and of the norm
    if ddp:
        first = [None] * world
        dist.all_gather_object(first, bad.tolist())
    steps = [step for pair in first for step in pair if step >= 0]
    if steps:
        where = min(steps)  # a bad loss of one rank spoils the norm of all: name that rank
        guilty = [r for r in range(world) if first[r][0] == where] or range(world)
        ids = '; '.join(f'rank {r}, sample ids {train_data.ids(where, batch_size, seed, r, world).tolist()}'
                        for r in guilty)
        stop_if(True, f'loss or gradient is not finite at step {where}, {ids}; nothing was saved since. '
                'Look at them with Store.windows_at(ids), or try a smaller lr, or grad_clip = 1')


interruptible, signals = [], []                          # not empty while `measured` is at work; what came in
pace = []                                                # (time, progress) of each refresh


def on_signal(number, frame):
    """Only note it: a step that has begun is finished and saved. A second signal does not wait for that."""
    impatient = number != signal.SIGHUP and signals.count(number) > 0
    signals.append(number)
    if impatient and not ddp:                            # torchrun itself sends more than one
        os.write(2, b'\nstopped at once, the steps since the last save are lost\n')
        os._exit(128 + number)
    asked_to_stop.append(signal.Signals(number).name)
    if interruptible:
        interruptible.clear()
        raise KeyboardInterrupt


for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:       # nohup wants SIGHUP ignored
        signal.signal(number, on_signal)


def stopping():
    """
    Has any rank been asked to stop? All must agree, or the others would wait for ever in the next all_reduce.
    """
    orphan = ddp and os.getppid() != parent
    return average(float(bool(asked_to_stop) or orphan))[0] > 0 if ddp else bool(asked_to_stop)


# ---- what is about to happen ----
peak = peak_of(torch.cuda.get_device_name()) if on_cuda else 0       # FLOP/s; 0 = unknown, then no mfu
n_params, git = sum(p.numel() for p in raw.parameters()), checkpoint.git_hash(M.__file__)
model_sha = checkpoint.sha256(M.__file__)  # of the code that runs, not of what it may become meanwhile
say(f'{model}: {n_params:,} parameters, {raw.flops_per_sample() / 1e9:.3g} GFLOP per sample')
say(f'{batch_size} samples/step = {micro_batch} x {accum} passes x {world} processes; samples: '
    + ' and '.join([f'{n_fixed:,} in {folder}'] * bool(folder)
                   + [f'more are made every {refresh_every} steps'] * bool(refresh_every)))
hardware = torch.cuda.get_device_name() if on_cuda else device
say(f'{hardware}{reason}, {torch.get_num_threads()} threads, {dtype}{", compiled" if compile else ""}; '
    f'out_dir {out_dir}; git {git or "none"}')
say('set: ' + ', '.join(f'{key} = {config[key]!r}' for key in changed))
if start >= max_steps and judged:
    say(f'{out_dir} has reached step {start} of {max_steps}: nothing to do')

# ---- the loop ----
again = start + judged or None                           # the first step whose points are drawn anew
logger = make_logger(log, out_dir, os.path.basename(out_dir), config, again, run_id) if master else None
batches = None                                           # a Prefetch
bar = tqdm(total=max_steps, initial=start, disable=not (master and sys.stderr.isatty()))
step, waited, clock, clock_step = start, 0.0, time.perf_counter(), start
bad = torch.full((2,), -1, device=device)                # first steps that were not finite, see check_finite
noise_seed = seed or 2**63  # seed 0 would meet the noise of the validation batches
raw.train()
while start < max_steps or not judged:
    paused = time.perf_counter()
    if refresh_every and step % refresh_every == 0 and refreshed < step < max_steps:
        check_finite()
        if batches:
            batches.close()                              # no batch is fetched from what was there before
        batches = None
        try:
            made = made_anew()
        except (Exception, SystemExit):                  # what was trained must not be lost to it
            if step > start and master:
                save(step, {}, False)
            raise
        refreshed = step
        pace.append((time.perf_counter(), made.get('refresh/progress', 0)))
        shown = ' | '.join(f'{key.removeprefix("refresh/")} {made[key]:.4g}' for key in [*made][:8])
        say(f'step {step}/{max_steps} | refresh | {shown} | {time.perf_counter() - paused:.1f} s')
        if master:
            logger.log(made, step)
    last, stop = step >= max_steps or made.get('refresh/done', 0) > 0, stopping()
    fresh = step > start or start == 0 or not judged     # what was done before a save is not done again
    validate = fresh and val_data is not None and (last or (val_every > 0 and step % val_every == 0))
    evaluate = fresh and eval_every > 0 and step > 0 and step % eval_every == 0
    store = fresh and step > 0 and (last or (save_every > 0 and step % save_every == 0))
    if validate or evaluate or store or stop:
        check_finite()

    # validate, evaluate
    metrics, judged, interrupted = {}, True, False
    if validate or evaluate:
        try:
            found = None if stop else measured(validate, evaluate)
        except (Exception, SystemExit):  # what was trained must not be lost to a bad val split
            judged = False
            if step > 0 and master and not fsdp:         # with it a save takes all ranks; who knows where
                save(step, {}, False)
            raise
        metrics, judged = found or {}, found is not None             # else to be made up for after the resume
        interrupted = not stop and not judged
        stop = stop or interrupted
        if judged and validate:
            say(f'step {step}/{max_steps} | val loss {metrics["val/loss"]:.4f}')
        if judged and evaluate:
            first = [key for i, key in enumerate(metrics) if i < 6 or key == best_metric]
            shown = ' | '.join(f'{key} {metrics[key]:.4g}' for key in first)
            say(f'step {step}/{max_steps} | {shown}')
        if metrics and master:
            logger.log(metrics, step)
    lost = [key for key, value in metrics.items() if key == 'val/loss' and not math.isfinite(value)]
    unknown = evaluate and judged and best_metric.startswith('eval/') and best_metric not in metrics

    # save
    if refreshed == step:
        metrics = metrics | made
        ended = made.get('refresh/done', 0) > 0          # then it has not played any more
        unknown = unknown or (given == 'refresh' and best_metric not in made and not ended)
    value, is_best = metrics.get(best_metric), False
    if value is not None and step > 0 and math.isfinite(value):
        is_best = best is None or (value < best if best_mode == 'min' else value > best)
        best = value if is_best else best
    if (store or is_best or ((stop or lost or unknown) and fresh)) and step > 0 and (master or fsdp):
        save(step, metrics, is_best)
    stop_if(lost, f'validation loss is not finite at step {step}: '
            f'look at {folder}/val for numbers that are none')
    stop_if(unknown, f'best_metric = {best_metric}: no such number; there are '
            f'{", ".join([*metrics][:8])} ...; see logs.json.txt for all')
    if interrupted and ddp:                              # each rank at another place: no more talk
        say(f'stopped at step {step}; --resume=True goes on')
        if master:
            logger.close()
        os._exit(0)
    if last or stop:
        unfinished = stop and not (last and judged)
        say(f'stopped at step {step}; --resume=True goes on' if unfinished else f'done: {out_dir}')
        break
    clock += time.perf_counter() - paused                # none of this was the step's time

    # one optimizer step
    now = time.perf_counter()
    if batches is None:
        end = step - step % refresh_every + refresh_every if refresh_every else None
        batches = Prefetch(lambda at: train_data.batch(at, batch_size, seed, rank, world), step, device,
                           end=end)
    batch = batches.next() | {'step': torch.tensor(step)}
    waited += time.perf_counter() - now
    for group in optimizer.param_groups:
        group['lr'] = lr_at(step) * group.get('lr_scale', 1.0)
    logs = {}
    for i, rows in enumerate(passes(batch)):
        reseed(noise_seed, step, rank, i)
        reduces = fsdp or not ddp or i == accum - 1      # fsdp: gradients that wait would lie there whole
        with nullcontext() if reduces else net.no_sync():            # forward too: DDP decides there
            with autocast:
                out = net(rows)
            if step == start and i == 0:
                contract.check_output(M, out)
            (out['loss'] / accum).backward()
        for key, value in out.items():
            logs[key] = logs.get(key, 0.0) + value.detach().float() / accum
    if hasattr(raw, 'clip_grad'):
        clipped = raw.clip_grad(grad_clip)
    else:
        norm = torch.nn.utils.clip_grad_norm_(params, grad_clip or math.inf)
        clipped = {'norm': norm.full_tensor() if fsdp else norm}
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if averages:
        update_averages(step)
    norms = torch.stack([value.float() for value in clipped.values()])
    wrong = torch.stack([~torch.isfinite(logs['loss']), ~torch.isfinite(norms).all()])
    bad = torch.where((bad < 0) & wrong, step, bad)
    step += 1
    bar.update()

    # log
    if step % log_every == 0 or step in (start + 1, max_steps):
        check_finite()
        logs |= clipped
        logs = dict(zip(logs, average(*(float(value) for value in logs.values()))))
        took = (time.perf_counter() - clock) / (step - clock_step)
        mfu = batch_size * raw.flops_per_sample() / (took * world * peak) if peak else 0
        shown = ' | '.join(f'{key} {value:.4f}' for key, value in logs.items())
        say(f'step {step}/{max_steps} | {shown} | lr {lr_at(step - 1):.1e} | {took * 1e3:.0f} ms | '
            f'{batch_size / took:.3g} samples/s{f" | mfu {mfu:.0%}" if mfu else ""} | '
            f'eta {hours_left(took):.2f} h')
        logs |= {'lr': lr_at(step - 1), 'ms': took * 1e3,
                 'waited': waited / (step - clock_step) / took}  # share of a step spent waiting for data
        if master:
            logger.log({f'train/{key}': value for key, value in logs.items()}, step)
        waited, clock, clock_step = 0.0, time.perf_counter(), step

# ---- goodbye ----
if batches:
    batches.close()
bar.close()
if master:
    logger.close()
if ddp:
    dist.barrier()                                       # nobody leaves while another still talks to it
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is saved; once a thread of torch, which the interpreter's end met, aborted a rank
