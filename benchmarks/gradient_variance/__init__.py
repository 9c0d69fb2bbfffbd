"""The paper's own figures, with ours in them: normalised variance of gradient estimators along one trajectory."""
