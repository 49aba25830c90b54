# pi0.5 on the Part Sorting task of the Global Humanoid Robot Challenge 2026, as its organisers train it in
# detail: their command for LeRobot is that of pi0 but for the length of the prompt, which holds the state.
# For a GPU; never run by us. The data:
# python data/lerobot/prepare.py --src=datasets/Part_Sorting --out=data/lerobot_part_sorting \
#     --cameras=all --size=240x320
#
# Here, too, weights start at random; published ones: --init_from=pretrained/pi05_base, and the tokenizer as
# for pi0. LeRobot 0.4.4 pads the state to 32 numbers in the prompt; here, and there from 0.5 on, it is not.
inherit('part_sorting_pi0.py')
out_dir = 'challenge2026_baseline/Part_Sorting/pi05'
pi05 = True
tokenizer_max_length = 200
