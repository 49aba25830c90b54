# NetHack in a 28x28 window around the player, five minutes on two CPU cores.
# One tile is one token, one true frame leads to one dreamed frame. Unlike the published recipe: the change is
# predicted, most targets are pure noise, where sampling starts, the context is nearly clean, and the loss is
# on the target alone.
model = 'nanowm'
dataset = 'minihack_pixels'
out_dir = 'out/minihack_crop'
seed = 3
num_frames = 2
depth = 4
hidden = 96
heads = 3
patch = 4
pred = 'x'
skip = True
snr_gamma = 0.0
t_sampling = 'uniform'
p_noise = 0.7
context_t = 39
context_loss = False
history_level = -1.0
sample_steps = 2               # one step is sharper at once, but fades when dreams are fed back
batch_size = 24
max_steps = 1300
lr = 3e-3
lr_schedule = 'cosine'
warmup_steps = 100
betas = (0.9, 0.99)
ema_decay = 0.998
log_every = 50
val_every = 500
save_every = 500
