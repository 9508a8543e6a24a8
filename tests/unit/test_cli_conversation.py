from cli.conversation import Conversation


def contents(conversation: Conversation, question: str) -> list[str]:
    return [message["content"] for message in conversation.ask(question)]


def test_the_last_turns_are_kept_and_the_system_prompt_always() -> None:
    conversation = Conversation("be brief", max_turns=2)
    for number in range(4):
        conversation.add(f"q{number}", f"a{number}")
    assert contents(conversation, "now") == ["be brief", "q2", "a2", "q3", "a3", "now"]
    assert [message["role"] for message in conversation.ask("now")] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]


def test_a_question_without_an_answer_leaves_no_trace() -> None:
    conversation = Conversation()
    conversation.ask("lost")
    assert contents(conversation, "next") == ["next"]


def test_reset_forgets_the_turns_and_keeps_the_system_prompt() -> None:
    conversation = Conversation("be brief")
    conversation.add("q", "a")
    conversation.reset()
    assert contents(conversation, "now") == ["be brief", "now"]


def test_without_history_each_question_stands_alone() -> None:
    conversation = Conversation(max_turns=0)
    conversation.add("q", "a")
    assert contents(conversation, "now") == ["now"]
