"""What reducers keep: from the kept sets and predictions of a results folder. `slimbench analyse OUT`"""
