import time, sys
from pathlib import Path
from drill_federation import *
import pytest
def test_quiet(tmp_path):
    t=time.time()
    with Drill(tmp_path) as d:
        print("made", time.time()-t)
        d.play()
        print("played", time.time()-t)
        d.check()
        print("checked", time.time()-t, d.trained)
        d.end()
        print("ended", time.time()-t)
def test_again(tmp_path):
    test_quiet(tmp_path)
