# pi0 on the Part Sorting task of the Global Humanoid Robot Challenge 2026, as its organisers train it in
# detail: their command for LeRobot, translated by data/lerobot/command.py. For a GPU; never run by us. Data:
# python data/lerobot/prepare.py --src=datasets/Part_Sorting --out=data/lerobot_part_sorting \
#     --cameras=all --size=240x320
#
# As the command names no weights, all 3 billion parameters start at random, there as here, and words are
# hashed. To tune the published ones, as their short command does, add --init_from=pretrained/pi0_base and
# --tokenizer=pretrained/paligemma-3b-pt-224/tokenizer.json. policy.compile_mode has no effect here.
model = 'pi0'
dataset = 'lerobot_part_sorting'
out_dir = 'challenge2026_baseline/Part_Sorting/pi0'
seed = 1000
tokenizer_max_length = 48     # all else of the network is our default

batch_size = 8                # 100,000 steps, our default
lr = 2.5e-5
lr_schedule = 'cosine'
warmup_steps = 1000
lr_decay_steps = 30_000       # the other 70,000 steps are at min_lr
min_lr = 2.5e-6               # LeRobot's cosine counts from step 0, ours from 1000: at most 0.3 % apart
betas = (0.9, 0.95)
dtype = 'float32'
compile = False
log_every = 200
save_every = 5000
keep = 0                      # all checkpoints, 38 GB each
