# RT-1 (fractal), NanoWM-L/2 (558.7 M): the scale ablation, 23.62 dB after 50k steps (B/2: 23.07 dB).
# The published docs say about 460 M parameters; that would be a GELU MLP, the code has SwiGLU of width
# 4 * hidden: 558.7 M.
# The recipe of config/rt1_b2.py, no-op clipping and warm-up included.
inherit('rt1_b2.py')
out_dir = 'out/rt1_l2'
max_steps = 50_000
depth = 24
hidden = 1024
heads = 16
