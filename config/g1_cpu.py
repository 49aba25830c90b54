# A real humanoid, Unitree G1: 26 numbers of arms and hands at 30 fps. Its hands are 98 % of the error and
# report no velocity, hence `velocity`; residual gives the hands more weight than delta does. The data, from a
# LeRobot set at PATH:
# python data/lerobot/prepare.py --src=PATH --out=data/lerobot_g1 --val=85-99 \
#     --group arm=0-13:rad --group hand=14-25:1
inherit('arx5_cpu.py')
dataset = 'lerobot_g1'
out_dir = 'out/g1_cpu'
state_pred = 'residual'
velocity = True
max_steps = 1500
lr = 2e-3
ema_decay = 0.998
