"Files with something wrong, for tests of what reads them"

def damaged(
    files,   # name -> bytes
    r,       # random.Random
    swapped, # (name, bytes, r) -> bytes: what can be read, with other contents
):
    "The same files with one or several things wrong"
    files = dict(files)
    for _ in range(r.choice((1, 1, 2))):
        n = r.choice(sorted(files)); b = bytearray(files[n]); how = r.randrange(7)
        if not b: continue
        if how==0:
            for _ in range(r.choice((1, 3, 30))): b[r.randrange(len(b))] ^= 1<<r.randrange(8)
        elif how==1: b = b[:r.randrange(len(b))]
        elif how==2: i = r.randrange(len(b)); b[i:i+r.randrange(1, 60)] = bytes(r.randrange(256) for _ in range(r.randrange(1, 60)))
        elif how==3: i = r.randrange(min(len(b), 400)); b[i] = r.randrange(256) # heads hold names, sizes and offsets
        elif how==4 and len(files)>1: b = bytearray(files[r.choice(sorted(files))])
        else: b = bytearray(swapped(n, bytes(b), r))
        files[n] = bytes(b)
    return files
