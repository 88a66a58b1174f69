"""What the limiter costs, measured: ``agent`` without HAProxy, ``end_to_end`` with it."""
