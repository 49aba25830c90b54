# Real video: a Unitree G1 picks up a bottle, 32 px, 6 Hz, four videos to learn from and two held out.
# python data/lerobot/prepare.py --src=../g1_lerobot --video=observation.images.cam_high --size=32 \
#   --episodes=1,2,4,5,7,8 --val=4-5 --out=data/lerobot_g1video
inherit('minihack_wm_cpu.py')
dataset = 'lerobot_g1video'
out_dir = 'out/g1_video'
seed = 1
frame_skip = 5                 # 30 Hz were recorded; a model frame is a sixth of a second
injection = 'adaln_fuse'
skip = True
context_t = -1
max_steps = 450
