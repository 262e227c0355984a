"""The engine process: one loop of admit, draft, step, walk, emit over paged KV."""
