"""The four ways to transfer that ``multitrainer finetune`` shows on embedded digits."""
