"""The engine as the plugin starts it, with the jobs of the tests beside the real ones."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import engine.jobs
from engine.__main__ import main

engine.jobs.__path__.append(str(Path(__file__).with_name("engine_jobs")))
sys.exit(main())
