# ACT on the Part Sorting task of the Global Humanoid Robot Challenge 2026, as its organisers train it: their
# command for LeRobot, translated by data/lerobot/command.py. For a GPU; never run by us. The data:
# python data/lerobot/prepare.py --src=datasets/Part_Sorting --out=data/lerobot_part_sorting \
#     --cameras=all --size=240x320
model = 'act'
dataset = 'lerobot_part_sorting'
out_dir = 'challenge2026_baseline/Part_Sorting/act'
seed = 1000
device = 'cuda'

chunk_size = 50
n_action_steps = 50
pretrained_backbone_weights = 'ResNet18_Weights.IMAGENET1K_V1'
dim_model = 256
n_heads = 4
dim_feedforward = 1024

batch_size = 8                # 100,000 steps, our default
lr = 1e-5
weight_decay = 1e-4
grad_clip = 10.0
dtype = 'float32'             # their use_amp has no effect on a training
log_every = 200
save_every = 5000
keep = 0                      # all checkpoints
