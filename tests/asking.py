"What a notebook's kernel is asked beside its cells"
import time

def says(nb, code, want, seconds=20):
    "The kernel comes to say it"
    end = time.monotonic()+seconds
    while (got := nb.python(code))!=want and time.monotonic()<end: time.sleep(.1)
    assert got==want
