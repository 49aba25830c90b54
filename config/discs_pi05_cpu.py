# pi0.5 on the discs: the hand is words of the prompt, and time scales, shifts and gates every norm. To find
# out what digits mean takes longer: 2500 steps are not enough.
inherit('discs_pi0_cpu.py')
out_dir = 'out/discs_pi05_cpu'
pi05 = True
tokenizer_max_length = 24     # two numbers of up to three digits besides
max_steps = 6000
