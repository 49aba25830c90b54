# A planner for NetHack's levels in some fifty minutes of one CPU core: DAgger, its teacher solves mazes.
model = 'remdm'
out_dir = 'out/minihack_dagger'

n_embd = 64
n_layer = 2
seq_len = 32
replan_every = 8
channels_last = True
pad_input = 'mask'
memory = True

batch_size = 64
lr = 1e-3
lr_schedule = 'cosine'
min_lr = 1e-4
weight_decay = 1e-4
ema_decay = 0.995
max_steps = 12_000
total_timesteps = 2_000_000
save_every = 500
log_every = 50
