import latten
import pytest

VARIANTS = {
    "gqa": dict(q_heads=8, kv_heads=2, head_dim=32),
    "gta": dict(q_heads=8, kv_heads=2, head_dim=32, rope_dim=16),
    "gla": dict(q_heads=8, latent_heads=2, latent_dim=32, rope_dim=16),
    "mla": dict(q_heads=8, latent_dim=32, rope_dim=16),
}


def layout(variant):
    return getattr(latten.HeadLayout, variant)(**VARIANTS[variant])


@pytest.fixture(scope="session")
def model():
    return latten.Model.load(latten.shipped("gla"))
