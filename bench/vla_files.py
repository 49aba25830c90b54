"""How much memory loading full weights takes, for bench/versus_vla.py: fresh processes on files of noise."""
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace

import torch
from safetensors.torch import save_file

import checkpoint
import smolvla
import words
from bench import timing

READ = '''
import torch, checkpoint, contract, smolvla
torch.set_num_threads(1)
def told(key): return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if key in line)
before = told('VmRSS')
{line}
sum(x.float().sum() for x in model.parameters())         # a mapped file is in memory once it was read
print(told('VmHWM') - before, sum(x.nbytes for x in model.parameters()))
'''
STATISTICS = {f'{key}_{name}' for key in ('state', 'action') for name in ('mean', 'std')}


def publish(folder, model, kind):
    """What LeRobot would save of a SmolVLA, but for statistics; all its weights are of this kind."""
    def feature(type_, *shape): return {'type': type_, 'shape': shape}
    cfg = model.cfg
    seen = {f'observation.images.{name}': feature('VISUAL', 3, cfg.height, cfg.width) for name in cfg.cameras}
    said = {key: value for key, value in asdict(cfg).items() if key not in ('tasks', 'cameras', 'tokenizer')}
    said |= {'type': 'smolvla', 'resize_imgs_with_padding': cfg.image_resolution,
             'input_features': seen | {'observation.state': feature('STATE', cfg.state_dim)},
             'output_features': {'action': feature('ACTION', cfg.action_dim)}}
    os.makedirs(folder)
    checkpoint.write_text(f'{folder}/config.json', json.dumps(said))
    weights = {smolvla.published(key): x.detach() for key, x in model.named_parameters()}
    weights |= {key: torch.zeros(shape) for key, shape in smolvla.dead(cfg).items()}
    save_file({f'model.{key}': x.to(kind) for key, x in weights.items()}, f'{folder}/model.safetensors')


def ways(cfg, folder):
    """{case: code that makes a model}, and the files that it reads."""
    model = smolvla.Model(cfg)
    publish(f'{folder}/float32', model, torch.float32)
    publish(f'{folder}/bfloat16', model, torch.bfloat16)
    meta = dict(step=1, model='smolvla', model_config=asdict(cfg), config={}, data_sha='')
    checkpoint.save(f'{folder}/run', 1, model.state_dict(), None, {}, meta)
    found = {f'from_pretrained, {kind}': f"model = smolvla.Model.from_pretrained('{folder}/{kind}', None)"
             for kind in ('float32', 'bfloat16')}
    found['a run of ours'] = f"model, _ = checkpoint.load('{folder}/run')"
    for name, tokenizer in ('float32', words.SAVED), ('run', ''):
        new = f'model = contract.build(smolvla, smolvla.{replace(cfg, tokenizer=tokenizer)!r}, empty=True)\n'
        filled = f"checkpoint.start_from(model, smolvla, '{folder}/{name}', {STATISTICS})"
        found[f'init_from, {name}'] = new + filled
    return found


def peak(line):
    """Code that makes a `model`, in a process of its own -> bytes at the peak, of the weights."""
    command = [sys.executable, '-c', READ.format(line=line)]
    said = subprocess.run(command, cwd=timing.ROOT, check=True, capture_output=True, text=True).stdout
    return [*map(int, said.split())]


def rows(cfg, clock):
    if not os.path.exists('/proc/self/status'):
        sys.exit('load: wants Linux, whose /proc tells the peak of a process')
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for case, line in ways(cfg, folder).items():
            peaks, weights = zip(*[peak(line) for _ in range(clock.reps)])
            table.append(timing.compared('load', case, peaks, 'weights', weights, 1.3, unit='bytes'))
    return table
