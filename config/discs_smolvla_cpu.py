# SmolVLA from scratch on the discs, as config/discs_pi0_cpu.py does it with pi0; here nothing is frozen.
model = 'smolvla'
dataset = 'discs_pixels'
out_dir = 'out/discs_smolvla_cpu'
seed = 0

vlm_model_name = '64x128x4x2x16'         # width, MLP, heads, heads of keys, numbers in a head
num_vlm_layers = 4
vision_variant = '64x3x128x4x2x8'        # width, layers, MLP, heads, px of a patch, patches on a side
scale_factor = 2
vocab_size = 4096
image_resolution = (16, 16)
tokenizer_max_length = 12
max_state_dim = 2
max_action_dim = 2
chunk_size = 8
n_action_steps = 8
freeze_vision_encoder = False
train_expert_only = False
draws = 4                     # of noise and time for each look, which is dear

batch_size = 64
max_steps = 3500              # 2500 are not enough
lr = 1e-3
lr_schedule = 'cosine'
warmup_steps = 100
weight_decay = 0.01
ema_decay = 0.999
val_every = 500
save_every = 500
