"""
Check nanowm.py, remdm.py and diffusion_policy.py against golden files: outputs of the authors' code, small,
with random weights.

    python tests/golden.py FILE...        prints the largest error of every output, exits 1 beyond tolerance

A file of nanowm holds `param.<state-dict key>`, inputs x and noise (B, T, C, H, W), t (B, T), action (B, T,
skip*A); outputs `forward` (the network on x as it is), `loss` and `mse` (B,) (on x noised to t), and
`sample.<mode>.<level>` with the draws it used: `.init` for all frames and, for level > 0, `.ctx_noise`. The
metadata tells the configuration.

A file of remdm holds `param.<state-dict key>`, of the two glyph tables only the rows that `palette` lists;
inputs local, global_, zt (masked plan), t_discrete, x0, t; outputs `logits`, `goal_pred`, `aux_loss`,
`loss.<schedule>.iw<0|1>.ls<label smoothing>` and the plans `greedy<K>`, which must be equal. Any width and
depth; a file without global_* parameters is a model that sees no map. iw1 is looser: the original takes
alpha' as a difference in float32, we take it analytically.

A file of LeRobot holds `in.*`, and `mid.*` on the way to `out.*`; its metadata the whole configuration. The
weights are no part of it: <file>.keys.json lists LeRobot's names and shapes, `formula` makes the numbers. Of
Diffusion Policy `in.` has what is seen, and the noise of the training and of a chain of samples, a row per
level t; `out.<ddpm|ddim><calls>[_predict_sample]` are chains, `mid.` of them some levels, the guess there and
the sample behind it. States and actions are used as they are, pictures / 255.

Tolerances are relative to the output: tol * max(1, max|reference|).
"""
import json
import math
import os
import re
import sys
import zlib
from dataclasses import replace

import torch
from safetensors import safe_open

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import diffusion_policy
import nanowm
import remdm

TOLERANCE = {'forward': 2e-5, 'loss': 1e-5, 'mse': 1e-5, 'sample': 1e-4,
             'logits': 1e-5, 'goal_pred': 1e-5, 'aux_loss': 1e-5, 'iw1': 2e-3, 'greedy': 0,
             'mid': 5e-5, 'out': 5e-5}
OURS = {'epsilon': 'eps', 'squaredcos_cap_v2': 'cosine'}            # their words -> ours


def load(path):
    """-> Model with the file's weights, {name: tensor} of the rest, metadata."""
    with safe_open(path, 'pt') as f:
        meta = f.metadata()
        tensors = {key: f.get_tensor(key) for key in f.keys()}
    if 'policy' in meta:
        if meta['policy'] not in POLICIES:
            sys.exit(f'{path}: a file of {meta["policy"]}; known are {", ".join(POLICIES)}')
        return POLICIES[meta['policy']](meta, path), tensors, meta
    if 'x0' in tensors:
        return *planner(tensors, meta, path), meta
    _, _, channels, height, width = tensors['x'].shape
    cfg = nanowm.Config(
        height=height, width=width, channels=channels, action_dim=tensors['action'].shape[-1],
        num_frames=int(meta['frames']), n_context=int(meta['n_context']), depth=int(meta['depth']),
        hidden=int(meta['hidden']), heads=int(meta['heads']), patch=int(meta['patch']),
        injection=meta['injection'], pred=OURS.get(meta['pred'], meta['pred']),
        schedule=OURS.get(meta['schedule'], meta['schedule']),
        ztsnr=meta['zero_terminal_snr'] == 'True' and meta['pred'] != 'flow',
        snr_gamma=float(meta['snr_gamma']), sample_steps=int(meta['sampling_steps']))
    model = nanowm.Model(cfg).eval()
    weights = {key[6:]: value for key, value in tensors.items() if key.startswith('param.')}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {'action_mean', 'action_std'}, f'{path}: not in the file: {missing}'
    assert not unexpected, f'{path}: no such parameter in nanowm.Model: {unexpected}'
    return model, {key: value for key, value in tensors.items() if not key.startswith('param.')}, meta


def planner(tensors, meta, path):
    """-> remdm.Model with the file's weights, {name: tensor} of the rest."""
    weights = {key[6:]: value for key, value in tensors.items() if key.startswith('param.')}
    for name in ('embedding', 'global_embedding'):
        rows = weights.pop(f'{name}.weight.rows', None)
        if rows is not None:                             # a forward that reads another row will not be finite
            weights[f'{name}.weight'] = torch.full((remdm.N_GLYPHS, rows.shape[1]), torch.nan)
            weights[f'{name}.weight'][tensors['palette']] = rows
    layers = {key.split('.')[2] for key in weights if key.startswith('transformer.')}
    cfg = remdm.Config(n_embd=weights['action_emb.weight'].shape[1], n_head=int(meta['n_head']),
                       n_layer=len(layers), seq_len=weights['pos_emb.weight'].shape[0],
                       use_global='global_gate' in weights)
    wide = weights['transformer.layers.0.linear1.weight'].shape[0]
    assert wide == 4 * cfg.n_embd, f'{path}: an MLP {wide} wide, ours is {4 * cfg.n_embd}'
    model = remdm.Model(cfg).eval()
    model.load_state_dict(weights)
    return model, {key: value for key, value in tensors.items() if not key.startswith('param.')}


@torch.no_grad()
def planner_outputs(model, g):
    """Recompute every output of a golden file of remdm. -> {name: tensor}"""
    out, obs = {}, {'local': g['local'][:, None], 'glyphs': g['global_'][:, None]}
    out['logits'], goal = model.net(g['local'], g['global_'], g['zt'], g['t_discrete'])
    if 'goal_pred' in g:
        out['goal_pred'] = goal
    if 'aux_loss' in g:
        out['aux_loss'] = remdm.goal_loss(goal, g['global_'])
    for name in g:
        if name.startswith('loss.'):
            schedule, weighted, smoothing = name[5:].split('.', 2)
            cfg = replace(model.cfg, noise_schedule=schedule, use_importance_weighting=weighted == 'iw1',
                          label_smoothing=float(smoothing[2:]))
            out[name] = remdm.loss_of(out['logits'], g['x0'], g['zt'], g['t'], cfg)
        if name.startswith('greedy'):
            *_, out[name] = model.plans(obs, 'greedy', int(name[6:]))
    return out


# ---- policies of LeRobot ----

def formula(key, shape, seed):
    """The weight of one of LeRobot's names: a draw of its own, scaled by its kind."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()) ^ seed)
    draw, last = torch.randn(shape, generator=generator), key.rpartition('.')[2]
    if last == 'running_var':
        return 1 + 0.1 * draw.abs()
    if last != 'running_mean' and len(shape) > 1:
        return draw / (draw.numel() / shape[0]) ** 0.5
    return 0.1 * draw + (last == 'weight')               # 1-D: the scale of a norm is about 1


def fields_of(M, meta):
    """Fields of our Config by LeRobot's names; its null is () or 0 or '' here."""
    theirs, defaults = json.loads(meta['lerobot_config']) | json.loads(meta['config']), vars(M.Config())
    given = {key: theirs[key] for key in defaults.keys() & theirs.keys()}
    given = {key: type(defaults[key])() if value is None else value for key, value in given.items()}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def fill(model, prefix, path, seed):
    """The weights of a golden file, made by the formula; names and shapes must be those that it lists."""
    with open(path.removesuffix('.safetensors') + '.keys.json') as f:
        listed = {key.removeprefix(prefix): (key, *row[:3]) for key, row in json.load(f).items()}
    own = {key: list(x.shape) for key, x in model.state_dict().items() if not is_statistic(key)}
    assert own == {key: row[1] for key, row in listed.items()}, f'{path}: other names or shapes than listed'
    weights = {key: formula(name, shape, seed) for key, (name, shape, _, made) in listed.items()
               if made == 'formula'}
    model.load_state_dict(weights, strict=False)


def is_statistic(key):
    return re.fullmatch(r'(image|state|env_state|action)_(mean|std|min|max)', key) is not None


def diffusion(meta, path):
    """-> diffusion_policy.Model with the file's weights, and statistics that change nothing."""
    cameras = json.loads(meta['config'])['cams']
    height, width = next(iter(cameras.values()))
    cfg = diffusion_policy.Config(obs='image', cameras=tuple(cameras), height=height, width=width,
                                  **fields_of(diffusion_policy, meta))
    model = diffusion_policy.Model(cfg).eval()
    fill(model, 'diffusion.', path, int(meta['SEED']))
    for name, value in {'min': -1, 'max': 1}.items():
        getattr(model, f'state_{name}').fill_(value)
        getattr(model, f'action_{name}').fill_(value)
    model.image_mean.zero_()
    model.image_std.fill_(1)
    return model


def diffusion_outputs(model, g):
    """Recompute every output of a golden file of Diffusion Policy. -> {name: tensor}"""
    cfg, out = model.cfg, {'mid.alphas_cumprod': model.alpha_bar}
    batch = {key[3:]: x for key, x in g.items() if key.startswith(('in.image.', 'in.state', 'in.action'))}
    batch |= {'noise': g['in.train_eps'], 't': g['in.train_timesteps'], 'mask': ~g['in.action_is_pad']}
    encoders = model.rgb_encoder if cfg.use_separate_rgb_encoder_per_camera else [model.rgb_encoder]

    def watch(module, name, rows=None):
        module.register_forward_hook(lambda module, given, result: out.update({name: result[:rows]}))
    for i, encoder in enumerate(encoders):
        watch(encoder.backbone, f'mid.backbone_feature.{i}', 2)
        watch(encoder.pool, f'mid.keypoints.{i}')
        watch(encoder, f'mid.rgb_feature.{i}')
    seen = out['mid.global_cond'] = model.encode(batch)
    noisy = diffusion_policy.add_noise(g['in.action'], batch['noise'], model.alpha_bar[batch['t']])
    out['mid.noisy_actions'] = noisy
    out['out.train.unet_pred'] = model.net(noisy, batch['t'], seen)
    for name, masked, rule in (('', False, 'skip'), ('_pad_masked', True, 'skip'),
                               ('_pad_masked_le_0_5_derived', True, 'zeros')):
        model.cfg = replace(cfg, do_mask_loss_for_padding=masked, padding=rule)
        out[f'out.train.loss{name}'] = model(batch)['loss']
    for name in sorted(key[4:-13] for key in g if key.endswith('.full_horizon')):
        out |= chain(model, cfg, g, seen, name)
    model.cfg = cfg
    return out


def chain(model, cfg, g, seen, name):
    """The samples of one chain, and what the file has of the way to them."""
    sampler, calls, clean = re.fullmatch(r'(ddpm|ddim)(\d+)(_predict_sample)?', name).groups()
    model.cfg = replace(cfg, noise_scheduler_type=sampler.upper(), num_inference_steps=int(calls),
                        prediction_type='sample' if clean else 'epsilon')
    net, way = model.net, []

    def watched(z, t, seen):
        way.append([t[0], z, net(z, t, seen)])
        return way[-1][2]
    model.net = watched
    full = model.sample(seen, g['in.sample_noise'], lambda t: g['in.ddpm_step_noise'][t])
    del model.net                                        # the method of its class is there again
    after = [z for _, z, _ in way[1:]] + [full]
    kept = [i for i, (t, _, _) in enumerate(way) if t in g[f'mid.{name}.timesteps_stored']]
    return {f'out.{name}.full_horizon': full,
            f'out.{name}.actions': full[:, cfg.n_obs_steps - 1:][:, :cfg.n_action_steps],
            f'mid.{name}.timesteps_stored': torch.stack([way[i][0] for i in kept]),
            f'mid.{name}.unet_out': torch.stack([way[i][2] for i in kept]),
            f'mid.{name}.x_after_step': torch.stack([after[i] for i in kept])}


POLICIES = {'dp': diffusion}


@torch.no_grad()
def outputs(model, g):
    """Recompute every output of a golden file. -> {name: tensor}"""
    if isinstance(model, diffusion_policy.Model):
        return diffusion_outputs(model, g)
    if isinstance(model, remdm.Model):
        return planner_outputs(model, g)
    cfg, x, t, action, given = model.cfg, g['x'], g['t'], g['action'], model.cfg.n_context
    out = {'forward': model.net(x, t, action)}
    out['loss'], out['mse'] = model.loss(x, action, t, g['noise'])
    for name in (key for key in g if key.startswith('sample.') and not key.endswith(('.init', '.ctx_noise'))):
        mode, level = name[7:].split('.', 1)
        t_context, context = model.context_level(float(level)), x[:, :given]
        if t_context > 0:
            levels = torch.full(context.shape[:2], t_context)
            context = model.q_sample(context, levels, g[name + '.ctx_noise'])
        matrix = nanowm.scheduling_matrix(mode, x.shape[1] - given, cfg.sample_steps, cfg.timesteps)
        start = torch.cat([context, g[name + '.init'][:, given:]], 1)
        out[name] = model.denoise(start, action, matrix, given, t_context)
    return out


def check(path):
    """-> [(output, largest error, what is allowed)] of one file."""
    model, g, _ = load(path)
    rows, ours = [], outputs(model, g)
    for name in [*ours, *(key for key in g if key.startswith(('mid.', 'out.')) and key not in ours)]:
        reference, value = g[name], ours.get(name)
        kind = 'iw1' if '.iw1.' in name else name.split('.')[0].rstrip('0123456789')
        allowed = TOLERANCE[kind] * max(1, reference.abs().max().item())
        same = value is not None and value.shape == reference.shape
        rows.append((name, (value - reference).abs().max().item() if same else math.inf, allowed))
    return rows


if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit('which golden file? usage: python tests/golden.py FILE...')
    failed = 0
    for path in sys.argv[1:]:
        print(path)
        for name, error, allowed in check(path):
            wrong = not error <= allowed                            # also true for nan
            failed += wrong
            print(f'  {name:28s} error {error:.1e}   allowed {allowed:.1e}   {"FAILED" if wrong else "ok"}')
    sys.exit(f'{failed} outputs beyond tolerance' if failed else 0)
