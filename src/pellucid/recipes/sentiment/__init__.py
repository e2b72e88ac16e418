"""Chinese reviews, read character by character: good or bad?"""
