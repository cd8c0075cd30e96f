"""How the pictures are drawn, a file a topic, from plain data alone; `lvlm_radapt.plot` is the public face."""
