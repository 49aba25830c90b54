# RT-1 (fractal), NanoWM-S/2 (39.8 M): the scale ablation, 22.30 dB after 50k steps (B/2: 23.07 dB).
# The recipe of config/rt1_b2.py, no-op clipping and warm-up included.
inherit('rt1_b2.py')
out_dir = 'out/rt1_s2'
max_steps = 50_000
depth = 12
hidden = 384
heads = 6
