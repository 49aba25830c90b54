# SmolVLA on the Part Sorting task of the Global Humanoid Robot Challenge 2026, as its organisers train it in
# detail: their command for LeRobot, translated by data/lerobot/command.py. For a GPU; never run by us. Data:
# python data/lerobot/prepare.py --src=datasets/Part_Sorting --out=data/lerobot_part_sorting \
#     --cameras=all --size=240x320
#
# Not to be run as it stands: the VLM stays frozen, and here starts at random. LeRobot fills it in by
# policy.load_vlm_weights; here add --init_from=VLM --tokenizer=VLM/tokenizer.json, where VLM is the folder of
# SmolVLM2-500M-Video-Instruct. Their short command tunes a whole policy: --init_from=pretrained/smolvla_base.
# With --features=VLM prepare.py computes what the frozen VLM makes of pictures, once and not in each step.
#
# No SmolVLA that LeRobot released has policy.dtype, policy.image_resolution or policy.gradient_checkpointing,
# which this command gives. image_resolution = 224 is no whole number of tokens: pictures become 512 x 512.
model = 'smolvla'
dataset = 'lerobot_part_sorting'
out_dir = 'challenge2026_baseline/Part_Sorting/smolvla'
seed = 1000

batch_size = 8                # 100,000 steps with a peak of lr = 1e-4, our defaults
lr_schedule = 'cosine'
warmup_steps = 1000
lr_decay_steps = 30_000       # the other 70,000 steps are at min_lr
min_lr = 2.5e-6               # LeRobot's cosine counts from step 0, ours from 1000: at most 0.3 % apart
betas = (0.9, 0.95)
weight_decay = 1e-10
grad_clip = 10.0
dtype = 'float32'
compile = False
log_every = 200
save_every = 5000
keep = 0                      # all checkpoints, 2.4 GB each
