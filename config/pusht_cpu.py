# The policy in minutes of one CPU core: nine points of the T instead of pictures, a small network. What such
# a short run needs: weights that do not start small, a high learning rate that falls, an average that keeps
# up. The data: python data/pusht/prepare.py
inherit('pusht_imf.py')
obs = 'keypoints'
out_dir = 'out/pusht_cpu'

n_embd = 64
n_layer = 3
init_std = 0.0                # 1 / sqrt(inputs): at this width 0.02 shrinks what is seen in every layer
norm_eps = 1.0                # imf; the published 0.01 lets the easiest chunks of so few numbers rule
derivative = 'difference'     # in so small a network a step takes about six tenths of the jvp's time
max_steps = 8000
lr = 3e-3
warmup_steps = 200
ema_decay = 0.999
ema_power = 0.0               # 0: a ramp, (1 + n) / (10 + n); short runs have no time for the slower one
val_every = 1000
save_every = 1000
eval_every = 0
best_metric = 'val/loss'
best_mode = 'min'
