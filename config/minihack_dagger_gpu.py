# The published recipe (one GPU): 5.2 M parameters, batches of 2048, 600 rounds of 30 games and 100 steps.
# Ours in it: a teacher that solves mazes, and its labels where the student went. As published:
# --oracle=bfs5 --relabel=start --keep_lost=True --alias_actions=True
model = 'remdm'
out_dir = 'out/minihack_dagger_gpu'

batch_size = 2048
lr = 3e-5
weight_decay = 1e-4
ema_decay = 0.999
max_steps = 60_000
total_timesteps = 5_650_000
buffer_capacity = 10_000
save_every = 1000
log_every = 50
