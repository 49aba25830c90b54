# ACT on PushT from pictures: LeRobot's sizes and rates; wants a GPU. First: python data/pusht/prepare.py
model = 'act'
dataset = 'pusht_image'
out_dir = 'out/pusht_act'
seed = 1000

# ImageNet's weights, fetched once (47 MB); without a network give the file, or '' to begin with random ones
pretrained_backbone_weights = 'ResNet18_Weights.IMAGENET1K_V1'
n_action_steps = 8            # of a chunk of 100, ten seconds here: it looks as often as the other policies
optimizer_lr_backbone = 1e-5

batch_size = 8
max_steps = 100_000
lr = 1e-5
weight_decay = 1e-4
grad_clip = 10.0
val_every = 5000
save_every = 5000
eval_every = 20_000           # test_mean_score over 50 starts
best_metric = 'eval/test_mean_score'
best_mode = 'max'
