# pi0 from scratch, in minutes of one CPU core: two discs, a hand, and a sentence that says where to go.
# First: python data/discs/prepare.py
model = 'pi0'
dataset = 'discs_pixels'
out_dir = 'out/discs_pi0_cpu'
seed = 0

paligemma_variant = '64x3x128x4x1x16'    # width, layers, MLP, heads, heads of keys, numbers in a head
action_expert_variant = '64x3x128x4x1x16'
vision_variant = '64x3x128x4x4'          # width, layers, MLP, heads, px of a patch
vocab_size = 4096
image_resolution = (16, 16)
tokenizer_max_length = 12
max_state_dim = 2
max_action_dim = 2
chunk_size = 8
n_action_steps = 8
draws = 4                     # of noise and time for each look, which is dear

batch_size = 64
max_steps = 2500
lr = 1e-3
lr_schedule = 'cosine'
warmup_steps = 100
weight_decay = 0.01
ema_decay = 0.999
val_every = 500
save_every = 500
