"""
Judge a checkpoint by a protocol that its model understands: a JSON line on stdout, a table on stderr.

    python eval.py --ckpt=out/minihack_wm_cpu                   video: the frames right after the context
    python eval.py --ckpt=out/minihack_wm_cpu --horizon=8       a longer dream; `curve` has every step
    python eval.py --ckpt=out/minihack_wm_cpu --scores=psnr,lpips_alex,fid       other scores of the frames
    python eval.py --ckpt=out/arx5_cpu --png=arm.png            dynamics: open loop, beside simple rivals
    python eval.py --ckpt=out/arx5_cpu --protocol=plan          drive the simulated arm by planning in it
    python eval.py --ckpt=out/arx5_cpu --dataset=arx5_contact   judge on other data
    python eval.py --ckpt=out/minihack_dagger --envs=ood        env: act in the simulator, in closed loop
    python eval.py --ckpt=out/g1_act_cpu                        actions: beside a recording, if there is none
    python eval.py --protocol=plan --help                       the keys of one protocol

A protocol is a file of protocols/; its docstring says what each number means. Scores mean little alone, so
the same clips are also scored for predictors that anybody could have written. Keys of the model's Config that
only sampling reads (such as --sample_steps=2) can be given too; the JSON then says so.
"""
from configurator import Owner, configure, polite_exit

polite_exit()                 # before torch, whose import takes seconds; Ctrl-C would be a page of traceback

import importlib
import json
import os
import sys
import time
from dataclasses import fields
from pathlib import Path

import torch

import checkpoint
import contract
from data.loader import identity
from protocols.common import judged_on, try_output

ckpt = ''                     # out_dir of a run, or one of its step folders
which = 'latest'              # latest | best, when ckpt is an out_dir
ema = True                    # averaged weights where the checkpoint has them
protocol = ''  # video | dynamics | plan | env | actions | loss; '' = the model's first that the data serve
dataset = ''                  # a folder of data_dir to judge on; '' = the one of the training
data_dir = ''                 # where the data folders are; '' = where they were in the training
verify = False                # first compare the sha256 of every data file with meta.json
device = 'auto'               # auto = cuda if there is one, else cpu
out = ''                      # also write the JSON line to this file


def place(meta, wanted):
    """The dataset to judge on, and its folder; None where the training had none."""
    dataset = str(wanted['dataset']) or meta['config']['dataset']
    where = str(wanted['data_dir']) or meta['config']['data_dir']
    return dataset, os.path.join(where, dataset) if dataset else None


def load_protocol(name):
    """protocols/<name>.py, or one line: a key must not name other code that would then be run."""
    folder = Path(__file__).absolute().parent / 'protocols'
    known = [path.stem for path in sorted(folder.glob('*.py')) if '\nclass Keys' in path.read_text()]
    if name not in known:
        sys.exit(f'--protocol={name}: there is no such protocol, only {", ".join(known)}')
    return importlib.import_module(f'protocols.{name}')


def owners(wanted):
    """For configure(): keys of the protocol, and of the checkpoint's model those that only sampling reads."""
    name, M = str(wanted['protocol']), None
    if wanted['ckpt']:
        meta = checkpoint.read_meta(checkpoint.find(str(wanted['ckpt']), str(wanted['which'])))
        M = contract.load(meta['model'])
        name, known = name or contract.protocol_for(M, place(meta, wanted)[1]), contract.understood(M)
        if name not in known:
            sys.exit(f'--protocol={name}: {meta["model"]} is judged by {", ".join(known)}')
    if name:
        P = load_protocol(name)
        yield Owner(f'protocols/{name}.py', vars(P.Keys()), P.__file__)
    if M:
        saved = vars(M.Config()) | checkpoint.plain_config(meta['model_config'], M)
        theirs = {key: saved[key] for key in contract.sampling(M)}
        yield Owner(f'{meta["model"]}.Config, sampling', theirs, M.__file__)


if __name__ == '__main__':
    config, changed = configure(globals(), owners)
    if not ckpt:
        sys.exit('which checkpoint? --ckpt=OUT_DIR of a run')
    if out:
        try_output('out', out)
    started = time.time()
    torch.set_flush_denormal(True)                       # as in train.py
    M = contract.load(checkpoint.read_meta(checkpoint.find(ckpt, which))['model'])
    over = {key: config[key] for key in contract.sampling(M) if key in changed}
    model, meta = checkpoint.load(ckpt, ema, which, device, **over)
    dataset, folder = place(meta, config)
    contract.meet(model, M, folder)
    protocol = protocol or contract.protocol_for(M, folder)
    P = load_protocol(protocol)
    keys = P.Keys(**{field.name: config[field.name] for field in fields(P.Keys)})
    clips, data_sha = judged_on(P, folder, model.cfg, keys, M), ''
    if clips:                                            # else it is judged in a simulator
        if verify:
            clips.verify()
        data_sha = identity(clips.meta)
        # A checkpoint from before there was an identity knows its data by the sha256 of their meta.json.
        if meta['data_sha'] == checkpoint.sha256(os.path.join(folder, 'meta.json')):
            data_sha = meta['data_sha']
        if meta['data_sha'] != data_sha:
            print(f'note: {folder} holds other data than the training had', file=sys.stderr)

    try:
        result = P.evaluate(model, folder, keys, quiet=False)
    except (AssertionError, ValueError) as error:        # an impossible key; the message says which and why
        sys.exit(f'{protocol} protocol: {error}')
    source = dict(protocol=protocol, checkpoint=ckpt, step=meta['step'], ema=ema, dataset=dataset,
                  data_sha=data_sha[:12])
    if over:
        source['sampling_keys'] = over
    line = json.dumps(source | result | dict(seconds=round(time.time() - started, 1)))
    print(line, flush=True)                              # first: whatever fails now, the work is not lost
    if out:
        try:
            os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
            checkpoint.write_text(out, line + '\n')
        except OSError as error:
            sys.exit(f'--out={out}: {error.strerror}; the line above is the result')
    if hasattr(P, 'show'):
        P.show(result)
    if config.get('png'):
        print(f'wrote {config["png"]}', file=sys.stderr)
