"""What becomes of a measurement that raised: a status and a reason, while the others go on."""

import traceback

import torch

# How torch, oneDNN (which finds no room for the code that it writes), C++ and torch's stable ABI, which hands on no
# reason, say that there is no memory left.
WORDS = ("allocate memory", "could not create a primitive", "bad_alloc", "aoti_torch_empty")


def failure(error: Exception) -> dict:
    """{"status", "detail"}: "out of memory", "not applicable" for what torch says it does not implement, else "error",
    with the traceback on standard error."""
    message = (str(error).splitlines() or ["no message"])[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in WORDS):
        return {"status": "out of memory", "detail": f"an allocation failed: {message}"}
    if isinstance(error, NotImplementedError):
        return {"status": "not applicable", "detail": message}
    traceback.print_exception(error)
    return {"status": "error", "detail": f"{type(error).__name__}: {message}"}
