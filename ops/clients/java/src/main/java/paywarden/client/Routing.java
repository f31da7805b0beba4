package paywarden.client;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HexFormat;
import java.util.List;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/** The routing header, and the order in which a card's payments try several hosts. */
public final class Routing {
    static final String HEADER = "x-paywarden-route";
    private static final int DIGITS = 32;

    private Routing() {}

    /** Returns the routing header's value of a card: 32 hexadecimal digits. */
    public static String routeOf(byte[] routeKey, String cardId) {
        try {
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(routeKey, "HmacSHA256"));
            byte[] digest = mac.doFinal(cardId.getBytes(StandardCharsets.UTF_8));
            return HexFormat.of().formatHex(digest, 0, DIGITS / 2);
        } catch (GeneralSecurityException error) {
            throw new IllegalStateException("this Java has no HMAC-SHA-256", error);
        }
    }

    /** Returns the places of the hosts in {@code urls}, the one to ask first at the front (rendezvous hashing). */
    static List<Integer> hostOrder(String key, List<String> urls) {
        if (urls.size() == 1) {
            return List.of(0);
        }
        long[] weights = new long[urls.size()];
        List<Integer> order = new ArrayList<>();
        try {
            MessageDigest hash = MessageDigest.getInstance("SHA-256");
            for (int place = 0; place < weights.length; place++) {
                byte[] digest = hash.digest((key + "\n" + urls.get(place)).getBytes(StandardCharsets.UTF_8));
                weights[place] = ByteBuffer.wrap(digest).getLong();
                order.add(place);
            }
        } catch (GeneralSecurityException error) {
            throw new IllegalStateException("this Java has no SHA-256", error);
        }
        Comparator<Integer> byWeight = (first, second) -> Long.compareUnsigned(weights[second], weights[first]);
        order.sort(byWeight.thenComparing(urls::get, Comparator.reverseOrder()));
        return order;
    }
}
