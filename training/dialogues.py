"""Dialogues that the built-in model writes itself, so that training on plain text does not cost it its chat.

    python training/dialogues.py --count 2048       # a GPU; writes build/training/generated.safetensors

The model writes both sides: a user's turn after its template's opening, then the assistant's answer (as in "Magpie",
arXiv 2406.08464). What is kept is the text, laid out in one of the ways that people store chats. Needs transformers and
tokenizers beside what train.py needs, and build/training/tokenizer.json (`memcodec models path`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import data
import numpy as np
import torch
import weights as stored
from transformer import Shape

OUT = data.ROOT / "training" / "generated.safetensors"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
OPENINGS = ("", "", "", "How ", "Can you ", "What is ", "Why ", "Write ", "I ", "Hi, ", "Please ", "Tell me ", "Which ",
            "Explain ", "My ", "Is it ", "Give me ", "Who ", "Summarize ", "Rewrite ", "Translate ")  # fmt: skip
END = 2  # the token that ends a turn
BATCH = {"cuda": 512, "cpu": 64}  # dialogues that are written side by side, by device: 10 MB of keys and values each


def hugging_face(shape: Shape, loaded: dict[str, torch.Tensor]) -> Any:
    """The same model as transformers has it, for its `generate`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads,
        max_position_embeddings=8192, rms_norm_eps=shape.epsilon, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta}, bos_token_id=1, eos_token_id=END,
        pad_token_id=END,
    )  # fmt: skip
    state = {"model.embed_tokens.weight": loaded["embedding"], "model.norm.weight": loaded["gain"]}
    ends = (shape.heads * shape.head_size, (shape.heads + shape.key_heads) * shape.head_size)
    for n in range(shape.layers):
        name = f"model.layers.{n}."
        for part, value in zip("qkv", loaded["qkv"][n].tensor_split(ends), strict=True):
            state[f"{name}self_attn.{part}_proj.weight"] = value
        state[f"{name}self_attn.o_proj.weight"] = loaded["mix"][n]
        for part, value in zip(("gate", "up"), loaded["up"][n].chunk(2), strict=True):
            state[f"{name}mlp.{part}_proj.weight"] = value
        state[f"{name}mlp.down_proj.weight"] = loaded["down"][n]
        state[f"{name}input_layernorm.weight"] = loaded["attention.gain"][n]
        state[f"{name}post_attention_layernorm.weight"] = loaded["mlp.gain"][n]
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model.to(loaded["embedding"].device, torch.bfloat16).eval()


def turns(model: Any, tokenizer: Any, prompts: list[str], most: int, temperature: float) -> list[str]:
    """What the model writes after each prompt, until the turn ends or has `most` tokens. In batches."""
    size = BATCH[model.device.type]
    if len(prompts) > size:
        batches = (prompts[i : i + size] for i in range(0, len(prompts), size))
        return [text for batch in batches for text in turns(model, tokenizer, batch, most, temperature)]
    ids = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    longest = max(map(len, ids))
    padded = torch.tensor([[END] * (longest - len(i)) + i for i in ids], device=model.device)
    mask = torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i in ids], device=model.device)
    with torch.no_grad():
        out = model.generate(
            input_ids=padded, attention_mask=mask, max_new_tokens=most, do_sample=True, temperature=temperature,
            top_k=0, top_p=0.97, eos_token_id=END, pad_token_id=END,
        )  # fmt: skip
    found = []
    for row in out[:, longest:].tolist():
        found.append(tokenizer.decode(row[: row.index(END)] if END in row else row, skip_special_tokens=True).strip())
    return found


def laid_out(number: int, messages: list[tuple[str, str]]) -> str:
    """A dialogue as text, in one of six ways."""
    way = number % 6
    if way == 0:
        return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in messages)
    if way == 1:
        return "\n".join(json.dumps({"role": role, "content": text}, ensure_ascii=False) for role, text in messages)
    if way == 2:
        return "\n".join(f"<|im_start|>{role}\n{text}<|im_end|>" for role, text in messages)
    if way == 3:
        return "\n\n".join(f"**{role.capitalize()}**\n\n{text}" for role, text in messages)
    if way == 4:
        return "\n\n".join(text for _, text in messages)
    return "\n".join(f"{'Q' if role == 'user' else 'A'}: {text}" for role, text in messages)


def main() -> None:
    """The command line."""
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2048, help="dialogues")
    parser.add_argument("--tokens", type=int, default=320, help="of an answer, at most")
    parser.add_argument("--out", type=Path, default=OUT)
    a = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    shape, _, loaded = stored.load(stored.WEIGHTS, device, torch.bfloat16)
    model = hugging_face(shape, loaded)
    tokenizer = Tokenizer.from_file(str(data.TOKENIZER))
    openings = [OPENINGS[i % len(OPENINGS)] for i in range(a.count)]
    heads = [f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{opening}" for opening in openings]
    asked = turns(model, tokenizer, heads, 72, 1.0)
    users = [opening + text for opening, text in zip(openings, asked, strict=True)]
    heads = [
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
        for user in users
    ]
    answers = turns(model, tokenizer, heads, a.tokens, 0.8)
    plain = Tokenizer.from_file(str(data.TOKENIZER))
    plain.encode_special_tokens = True
    documents = []
    for i, (user, answer) in enumerate(zip(users, answers, strict=True)):
        text = laid_out(i, [("user", user), ("assistant", answer)])
        documents.append(("generated/en", np.array(plain.encode(text, add_special_tokens=False).ids)))
    data.Documents.of([d for d in documents if len(d[1]) > data.SHORTEST]).save(a.out)
    print(f"{sum(len(ids) for _, ids in documents):,} tokens in {len(documents)} dialogues; the first:")
    print(laid_out(0, [("user", users[0]), ("assistant", answers[0])])[:600])


if __name__ == "__main__":
    main()
