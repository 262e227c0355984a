"""Scale-out on Ray Serve: replicas with their own engines, routed by prefix, one gate for all of them."""
