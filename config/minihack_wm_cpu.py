# A NetHack room seen whole, 36x36 px: walk, stop at trees and walls, push boulders. The README's default.
# One tile is one token. Unlike the published recipe: the change is predicted, most targets are pure noise,
# where sampling starts, and the loss is on the target alone.
model = 'nanowm'
dataset = 'minihack_boulders'
out_dir = 'out/minihack_wm_cpu'
seed = 2                       # of the three recorded, the cleanest picture
num_frames = 2
depth = 4
hidden = 96
heads = 4                      # one for each neighbour
neighbours = 2.0
patch = 4
pred = 'x'
skip = True
snr_gamma = 0.0
t_sampling = 'uniform'
p_noise = 0.9
context_t = -1
context_loss = False
change_weight = 20.0           # a move changes two or three tiles of 81
history_level = -1.0
sample_steps = 1
batch_size = 12                # at the same cost more steps help more than larger batches
max_steps = 1500
lr = 2e-3
muon = 5.0                     # trees and stuck boulders are learned in less than half of the steps
lr_schedule = 'cosine'
warmup_steps = 100
betas = (0.9, 0.99)
ema_decay = 0.998
log_every = 50
val_every = 500
save_every = 500
