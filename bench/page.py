def write(): return 0
def readme(check): return 0
