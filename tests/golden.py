"""
Check our models against golden files: outputs of the authors' code, small, with random weights.

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

A file of LeRobot's policies names the policy and its sizes in the metadata; its weights are not
stored: they follow from their names and SEED, and <file>.keys.json beside it lists these. `in.*` are inputs,
already normalised, and draws; every `mid.*` and `out.*` is recomputed. Of dp `<ddpm|ddim><calls>` is a chain
of samples, `_predict_sample` one of a network that guesses actions; of some levels the output of the network
and the sample behind it are there. pi0, pi05 and smolvla likewise; their `prefix_out` is made by weights
that nothing else reads, so it is left out, and prompts are compared letter for letter.

Tolerances are relative to the output: tol * max(1, max|reference|).
"""
import json
import math
import os
import re
import sys
import zlib
from dataclasses import fields, replace

import torch
from safetensors import safe_open

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import act
import checkpoint
import diffusion_policy
import nanowm
import pi0
import remdm
import smolvla

TOLERANCE = {'forward': 2e-5, 'loss': 1e-5, 'mse': 1e-5, 'sample': 1e-4,
             'logits': 1e-5, 'goal_pred': 1e-5, 'aux_loss': 1e-5, 'iw1': 2e-3, 'greedy': 0,
             'mid': 5e-5, 'out': 5e-5}
STATISTICS = re.compile(r'\w+_(mean|std|min|max)')    # buffers of ours; LeRobot keeps them elsewhere
OURS = {'epsilon': 'eps', 'squaredcos_cap_v2': 'cosine'}            # their words -> ours


def load(path):
    """-> Model with the file's weights, {name: tensor} of the rest, metadata."""
    with safe_open(path, 'pt') as f:
        meta = f.metadata()
        tensors = {key: f.get_tensor(key) for key in f.keys()}
    if meta.get('policy') == 'act':
        return *lerobot_act(tensors, meta, path), meta
    if meta.get('policy') == 'dp':
        return lerobot_diffusion(meta, path), tensors, meta
    if meta.get('policy') in ('pi0', 'pi05'):
        return lerobot_pi(meta, path), tensors, meta
    if meta.get('policy') == 'smolvla':
        return lerobot_smolvla(meta, path), tensors, meta
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


def formula_weights(keys, seed):
    """
    {key: [shape, dtype, 'formula' or 'fixed', ...]} -> {key: tensor}, of those with a formula: Gaussians that
    are seeded by the key, of a spread that suits its kind.
    """
    weights = {}
    for key, (shape, _, how, *_) in keys.items():
        if how != 'formula':
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()) ^ seed)
        r, kind = torch.randn(tuple(shape), generator=generator), key.rpartition('.')[2]
        gemma = 'language_model.' in key or 'gemma_expert.' in key       # its norms multiply by 1 + weight
        if kind == 'running_var':
            r = 1 + 0.1 * r.abs()
        elif r.ndim > 1:
            r = r * (r.numel() / r.shape[0]) ** -0.5
        elif kind == 'weight' and not gemma:
            r = 1 + 0.1 * r
        else:
            r = 0.1 * r
        weights[key] = r
    return weights


def lerobot_weights(model, path, seed, prefix):
    """Fill a model by the formula; keys and shapes must be those of the list beside the file."""
    with open(str(path).replace('.safetensors', '.keys.json')) as f:
        keys = json.load(f)
    weights = formula_weights(keys, seed)
    own = model.state_dict()
    ours = {prefix + key: list(x.shape) for key, x in own.items() if not STATISTICS.fullmatch(key)}
    assert ours == {key: entry[0] for key, entry in keys.items()}, f'{path}: other keys or shapes than ours'
    model.load_state_dict(own | {key.removeprefix(prefix): x for key, x in weights.items()})


def lerobot_act(tensors, meta, path):
    """-> act.Model with the file's weights and no normalisation, {name: tensor} of the file."""
    said = json.loads(meta['lerobot_config']) | json.loads(meta['config'])
    known = {f.name for f in fields(act.Config)} - {*act.INITIAL}
    known = {key: value for key, value in said.items() if key in known and value is not None}
    cameras, numbers = said.get('cams') or {}, tensors.get('in.env_state')
    coeff = re.search(r'coefficient[^\d-]*(-?[\d.e-]*\d)', meta['notes'])
    known |= {'dropout': 0.0, 'n_action_steps': 1, 'cameras': tuple(cameras),
              'temporal_ensemble_coeff': float(coeff[1] if coeff else said['temporal_ensemble_coeff'] or 0)}
    if cameras:
        known['height'], known['width'] = next(iter(cameras.values()))
    if numbers is not None:
        known['env_state_dim'] = numbers.shape[1]
    cfg = act.Config(obs='image' if cameras else 'state' if numbers is None else 'keypoints', **known)
    model = act.Model(cfg).eval()
    lerobot_weights(model, path, int(meta['SEED']), 'model.')
    if cameras:
        model.image_mean.zero_()
        model.image_std.fill_(1.0)
    return model, tensors


@torch.no_grad()
def act_outputs(model, g):
    """Recompute every output of a golden file of ACT. -> {name: tensor}"""
    batch = {'state': g['in.state'][:, None], 'action': g['in.action'], 'mask': ~g['in.action_is_pad']}
    if model.cfg.use_vae:
        batch['noise'] = g['in.latent_eps']
    for name in model.cfg.cameras:
        batch[f'image.{name}'] = g[f'in.image.{name}'][:, None]
    if 'in.env_state' in g:
        batch['env_state'] = g['in.env_state'][:, None]
    out, seen, cfg = {}, {}, model.cfg

    def watch(name):
        return lambda module, inputs, output: seen.setdefault(name, []).append(output)
    parts = 'backbone', 'encoder', 'decoder', 'encoder_latent_input_proj', 'vae_encoder_latent_output_proj'
    hooks = [getattr(model, name).register_forward_hook(watch(name)) for name in parts
             if hasattr(model, name)]
    hooks.append(model.action_head.register_forward_hook(watch('action_head')))
    losses = model.train()(batch)
    model.cfg = replace(cfg, padding='zeros')
    older = model(batch)
    model.eval().cfg = cfg
    model.act(batch)
    for hook in hooks:
        hook.remove()
    for name, value in zip(cfg.cameras, seen.get('backbone', [])):
        out[f'mid.backbone_feature.{name}'] = value
    for part in 'encoder', 'decoder':
        out[f'mid.train.{part}_out'], out[f'mid.eval.{part}_out'] = seen[part][0], seen[part][-1]
    if cfg.use_vae:
        out['mid.train.vae_mu'], out['mid.train.vae_log_sigma_x2'] = \
            seen['vae_encoder_latent_output_proj'][0].chunk(2, -1)
        out['out.train.kld_loss'] = losses['kl']
    out['mid.train.latent_token'] = seen['encoder_latent_input_proj'][0]
    out['out.train.actions_hat'], out['out.eval.actions'] = seen['action_head'][0], seen['action_head'][-1]
    out['out.train.loss'] = losses['loss']
    for name, said in (('l1_loss', losses), ('l1_loss_le_0_5_derived', older)):
        out[f'out.train.{name}'] = said.get('l1', said['loss'])      # without a VAE it is all of the loss
    past, actions = None, []
    for chunk in g['in.ensemble.chunks']:
        action, past = act.ensemble(past, chunk, cfg.temporal_ensemble_coeff)
        actions.append(action)
    out['out.ensemble.actions'] = torch.stack(actions)
    return out


def lerobot_diffusion(meta, path):
    """-> diffusion_policy.Model with the file's weights, and statistics that change nothing."""
    said = json.loads(meta['lerobot_config']) | json.loads(meta['config'])
    defaults = {key: value for key, value in vars(diffusion_policy.Config()).items()
                if key not in diffusion_policy.INITIAL}
    # LeRobot's null is (), 0 or '' here
    known = {key: said[key] or type(default)() for key, default in defaults.items() if key in said}
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    cameras = said['cams']
    height, width = next(iter(cameras.values()))
    model = diffusion_policy.Model(diffusion_policy.Config(
        **known, obs='image', cameras=tuple(cameras), height=height, width=width)).eval()
    lerobot_weights(model, path, int(meta['SEED']), 'diffusion.')
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


def lerobot_pi(meta, path):
    """-> pi0.Model with the file's weights, and statistics that change nothing."""
    said, known = told(meta, pi0)
    gemma = 'width', 'depth', 'mlp_dim', 'num_heads', 'num_kv_heads', 'head_dim'
    return filled(pi0, path, meta, known | dict(
        pi05=meta['policy'] == 'pi05', tokenizer_max_length=200,
        paligemma_variant=numbers(said['vlm'], *gemma), action_expert_variant=numbers(said['expert'], *gemma),
        vision_variant=numbers(said['vision'], 'hidden_size', 'num_hidden_layers', 'intermediate_size',
                               'num_attention_heads', 'patch_size')))


def lerobot_smolvla(meta, path):
    """-> smolvla.Model with the file's weights, and statistics that change nothing."""
    said, known = told(meta, smolvla)
    size, patch = said['image_size'], said['vision']['patch_size']
    vision = said['vision'] | {'table': size // patch}
    return filled(smolvla, path, meta, known | dict(
        image_resolution=tuple(said['resize_imgs_with_padding'] or (size, size)),
        vocab_size=said['text']['vocab_size'],
        vlm_model_name=numbers(said['text'], 'hidden_size', 'intermediate_size', 'num_attention_heads',
                               'num_key_value_heads', 'head_dim'),
        vision_variant=numbers(vision, 'hidden_size', 'num_hidden_layers', 'intermediate_size',
                               'num_attention_heads', 'patch_size', 'table')))


def told(meta, M):
    """-> what a file says, and what of that is a field of the model's Config."""
    said = json.loads(meta['lerobot_config']) | json.loads(meta['config'])
    known = {key: said[key] for key in vars(M.Config()) if key in said}
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    given = [name for name in said['cams'] if name not in said['missing']]
    return said, known | {'n_action_steps': said['chunk_size'], 'cameras': (*given, *said['missing'])}


def numbers(part, *keys):
    return 'x'.join(str(part[key]) for key in keys)


def filled(M, path, meta, known):
    """A vision-language-action model with the weights of a file, whose list of keys must be ours."""
    model = M.Model(M.Config(**known)).eval()
    with open(str(path).replace('.safetensors', '.keys.json')) as f:
        keys = {key.removeprefix('model.'): entry[0] for key, entry in json.load(f).items()}
    names = {M.published(key): list(x.shape) for key, x in model.named_parameters()}
    unread = {key: list(shape) for key, shape in M.dead(model.cfg).items()}
    assert names | unread | {M.HEAD: names[M.published('embed_tokens.weight')]} == keys, \
        f'{path}: other keys or shapes than ours'
    weights = formula_weights({f'model.{key}': [shape, '', 'formula'] for key, shape in keys.items()},
                              int(meta['SEED']))
    weights = {key.removeprefix('model.'): x for key, x in weights.items()}
    own = checkpoint.lerobot_weights(M, model, weights, path)
    model.load_state_dict(own, strict=False)
    for key in 'state', 'action':
        for name, value in {'q01': -1, 'q99': 1, 'mean': 0, 'std': 1}.items():
            if hasattr(model, f'{key}_{name}'):
                getattr(model, f'{key}_{name}').fill_(value)
    return model


def language_outputs(model, g):
    """Recompute every output of a golden file of a vision-language-action model. -> {name: tensor}"""
    cfg, out, look = model.cfg, {}, model.look
    batch = {key[3:]: x[:, None] for key, x in g.items() if key.startswith(('in.image.', 'in.state'))}
    batch |= {key[3:]: x for key, x in g.items() if key.startswith('in.image_mask.')}
    batch.setdefault('state', torch.zeros(len(g['in.action']), 1, cfg.state_dim))    # pi05 reads it in words
    batch |= {'action': g['in.action'], 'noise': g['in.train_noise'], 't': g['in.train_time']}
    pad = g.get('in.action_is_pad', torch.zeros(g['in.action'].shape[:2], dtype=torch.bool))
    batch['mask'] = ~pad

    def all_cameras(batch):                              # with those that are missing, behind the others
        pictures, there = look(batch)
        for _ in range(len(cfg.cameras) - len(pictures)):
            pictures, there = [*pictures, -torch.ones_like(pictures[0])], [*there, torch.zeros_like(there[0])]
        return pictures, there
    model.look, model.read = all_cameras, lambda batch: (g['in.tokens'], g['in.token_mask'])
    pictures, there = model.look(batch)
    x, real = model.prefix(pictures, there, *model.read(batch))
    small, seen, valid = isinstance(model, smolvla.Model), x, real
    if small:                                            # the state is the last token of LeRobot's prefix
        state = torch.nn.functional.pad(g['in.state'], (0, cfg.max_state_dim - cfg.state_dim))
        seen = torch.cat([x, model.state_proj(state)[:, None]], 1)
        valid = torch.nn.functional.pad(real, (0, 1), value=True)
    out['mid.prefix_embs'], out['mid.prefix_valid'] = seen * valid[..., None], valid
    for name, picture in zip(cfg.cameras, pictures):
        out[f'mid.image_preprocessed.{name}'] = picture
        patches = model.vision(picture)
        out[f'mid.image_tokens.{name}'] = model.projector(
            smolvla.shuffled(patches, cfg.scale_factor) if small else patches)
    a = torch.nn.functional.pad(g['in.action'], (0, cfg.max_action_dim - cfg.action_dim))
    e, t = batch['noise'], batch['t']
    noisy = out['mid.train.x_t'] = t[:, None, None] * e + (1 - t[:, None, None]) * a
    cache, suffix = model.encode(batch), model.suffix(noisy, t)
    out['mid.train.v_t'] = model.velocity(noisy, t, cache)
    if small:
        ones = torch.ones_like(suffix[..., 0], dtype=torch.bool)
        after = model.expert(suffix, ones, cache, causal=True)[0]
    else:
        suffix, after = suffix_of_pi(model, g, x, real, cache, *suffix, out)
    out['mid.train.suffix_embs'], out['mid.train.suffix_out'] = suffix, after
    error = out['out.train.loss_elementwise'] = model.errors(batch)
    own = error[..., :cfg.action_dim]
    out['out.train.loss'] = model(batch)['loss']
    out['out.train.loss_per_dim'], out['out.train.loss_per_sample'] = own.mean((0, 1)), own.mean((1, 2))
    if small:
        valid = batch['mask'][..., None]
        out['out.train.loss_per_sample'] = (own * valid).sum((1, 2)) / (valid.sum((1, 2)) * cfg.action_dim)
        out['out.train.loss_without_pad_mask'] = own.mean()
    out['out.train.loss_all_padded_dims_derived'] = out['out.train.loss_le_0_5_derived'] = error.mean()
    out |= walk(model, cache, g)
    return out


def suffix_of_pi(model, g, x, real, cache, suffix, cond, out):
    """pi0: the state is the first token of what LeRobot calls the suffix; pi05: the time's condition."""
    cfg, ones = model.cfg, torch.ones_like(suffix[..., 0], dtype=torch.bool)
    after = model.expert(suffix, ones, cache, cond)[0]
    if cfg.pi05:
        out['mid.train.adarms_cond'] = cond
        return suffix, after
    state = torch.nn.functional.pad(g['in.state'], (0, cfg.max_state_dim - cfg.state_dim))
    state = model.state_proj(state)[:, None]
    first = model.expert(state, ones[:, :1], model.vlm(x, real, answer=False)[1])[0]
    return torch.cat([state, suffix], 1), torch.cat([first, after], 1)


def walk(model, cache, g):
    """Samples from the file's noise, and the steps to them."""
    cfg, out, velocity, steps = model.cfg, {}, model.velocity, []

    def watched(x, t, cache):
        steps.append((t[0], x, velocity(x, t, cache)))
        return steps[-1][2]
    model.velocity = watched
    full = out['out.sample.actions_padded_dims'] = model.sample(cache, g['in.sample_noise'])
    out['mid.sample.t'], out['mid.sample.x_before_step'], out['mid.sample.v'] = map(torch.stack, zip(*steps))
    out['out.sample.actions'] = full[..., :cfg.action_dim]
    for name in [name for name in g if re.fullmatch(r'out\.sample\.actions_\d+_steps', name)]:
        steps_of = 'num_steps' if isinstance(model, smolvla.Model) else 'num_inference_steps'
        model.cfg = replace(cfg, **{steps_of: int(name.split('_')[1])})
        out[name] = model.sample(cache, g['in.sample_noise'])[..., :cfg.action_dim]
    model.cfg = cfg
    return out


@torch.no_grad()
def outputs(model, g):
    """Recompute every output of a golden file. -> {name: tensor}"""
    if isinstance(model, act.Model):
        return act_outputs(model, g)
    if isinstance(model, diffusion_policy.Model):
        return diffusion_outputs(model, g)
    if isinstance(model, pi0.Model | smolvla.Model):
        return language_outputs(model, g)
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
    """-> [(output, largest error, what is allowed)] of one file; an output that is not ours errs by inf."""
    model, g, meta = load(path)
    rows, ours = [], outputs(model, g)
    for i, said in enumerate(json.loads(meta.get('prompt_examples', '[]'))):         # letter for letter
        bins = pi0.bins_of(torch.tensor(said['state'])).tolist()
        rows.append((f'prompt.{i}', 0.0 if pi0.prompt(said['task'], bins) == said['prompt'] else math.inf, 0))
    named = [name for name in g if name.startswith(('mid.', 'out.')) and not name.endswith('.prefix_out')]
    for name in named or ours:
        reference, value = g[name], ours.get(name)
        kind = 'iw1' if '.iw1.' in name else name.split('.')[0].rstrip('0123456789')
        allowed = TOLERANCE[kind] * max(1, reference.float().abs().max().item())
        same = value is not None and value.shape == reference.shape
        error = (value.float() - reference.float()).abs().max().item() if same else math.inf
        rows.append((name, error, allowed))
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
