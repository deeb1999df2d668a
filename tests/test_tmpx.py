def test_b(bert, corpus, ldlm, tmp_path):
    r = ldlm("evaluate", corpus, "--scorer", bert, "--max-tokens", 16)
    print(r.exit_code, r.stdout, r.stderr, r.exception)
