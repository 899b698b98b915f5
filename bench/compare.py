def add_options(p): pass
def run(o): return 0
