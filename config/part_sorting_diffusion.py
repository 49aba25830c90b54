# Diffusion Policy on the Part Sorting task of the Global Humanoid Robot Challenge 2026, as its organisers
# train it: their command for LeRobot, translated by data/lerobot/command.py. The network is that of our
# defaults, 263 million parameters and more. For a GPU; never run by us. The data:
# python data/lerobot/prepare.py --src=datasets/Part_Sorting --out=data/lerobot_part_sorting \
#     --cameras=all --size=240x320
model = 'diffusion_policy'
dataset = 'lerobot_part_sorting'
out_dir = 'challenge2026_baseline/Part_Sorting/diffusion'
seed = 1000

batch_size = 32               # 100,000 steps with a peak of lr = 1e-4, our defaults
lr_schedule = 'cosine'
warmup_steps = 500
betas = (0.95, 0.999)
weight_decay = 1e-6
grad_clip = 10.0
dtype = 'float32'
compile = False
log_every = 200
save_every = 5000
keep = 0                      # all checkpoints, 3 GB each
